"""A stand-in for the estimators of `bayesprune.tabular`: ridge regression on bootstrap samples, with their attributes.

It selects by t-statistics, quickly, so that the tests of files, commands and pages do not train networks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import ndtr, ndtri
from sklearn.base import BaseEstimator

MEMBERS, CHAINS = 12, 3


class _Linear(BaseEstimator):
    task = ""

    def __init__(
        self,
        *,
        select="fdr",
        fdr=0.05,
        probability=0.5,
        n_inputs=None,
        groups=None,
        random_state=None,
        verbose=0,
        without="constant",
    ):
        self.select = select
        self.fdr = fdr
        self.probability = probability
        self.n_inputs = n_inputs
        self.groups = groups
        self.random_state = random_state
        self.verbose = verbose
        self.without = without

    def fit(self, X, y):
        generator = np.random.default_rng(self.random_state)
        X = np.asarray(X, dtype=float)
        n, p = X.shape
        groups = [[i] for i in range(p)] if self.groups is None else self.groups
        assert sorted(i for group in groups for i in group) == list(range(p))
        targets = np.eye(int(y.max()) + 1)[y] if self.task == "classification" else np.asarray(y, float)[:, None]
        centre, scale = X.mean(0), X.std(0) + 1e-12
        Z, R = (X - centre) / scale, targets - targets.mean(0)
        score = np.abs(Z.T @ R / np.sqrt(n) / (R.std(0) + 1e-12)).max(axis=1)
        tail = np.array([np.full(len(g), score[g].max()) for g in groups], dtype=object)
        score = np.empty(p)
        for g, value in zip(groups, tail):
            score[g] = value
        probability = 1 / (1 + np.exp(-(score**2 - 2 * np.log(p) - 6)))
        order = np.argsort(-probability, kind="stable")
        q = np.empty(p)
        q[order] = np.maximum.accumulate(np.cumsum(1 - probability[order]) / np.arange(1, p + 1))
        if self.select == "number":
            support = np.isin(np.arange(p), order[: self.n_inputs])
        else:
            support = q <= self.fdr if self.select == "fdr" else probability > self.probability
        used = support if support.any() or self.without == "constant" else np.ones(p, dtype=bool)
        self.coefficients_ = np.zeros((MEMBERS, p + 1, targets.shape[1]))
        A = np.column_stack([np.ones(n), Z[:, used]])
        for member in self.coefficients_:
            rows = generator.integers(n, size=n)
            gram = A[rows].T @ A[rows] + 1e-3 * n * np.diag([0.0, *np.ones(used.sum())])
            member[np.append(True, used)] = np.linalg.solve(gram, A[rows].T @ targets[rows])
        self.centre_, self.scale_ = centre, scale
        self.n_features_in_, self.support_, self.inclusion_probability_, self.q_value_ = p, support, probability, q
        self.chain_probability_ = np.clip(probability + 0.02 * generator.normal(size=(CHAINS, p)), 0, 1)
        self.feature_importances_ = score
        self.noise_variance_ = float((targets - self._members(X).mean(0)).var())
        self.prior_ = {"expected_inputs": 3.0, "inclusion_probability": 3 / p, "soft_threshold": 0.02}
        top = order[:12]
        epoch = np.arange(1, 31)
        self.history_ = {
            "epoch": epoch,
            "loss": 1 + np.exp(-epoch[:, None] / 5) * np.array([1.0, 1.1, 0.9]),
            "path_inputs": top,
            "path": 0.5 + (probability[top] - 0.5) * (1 - np.exp(-epoch / 8))[:, None],
            "threshold": np.where(epoch < 10, np.nan, 0.5),
        }
        self.n_iter_ = 30
        return self

    def _members(self, X):
        Z = (np.asarray(X, dtype=float) - self.centre_) / self.scale_
        return np.einsum("np,mpo->mno", np.column_stack([np.ones(len(Z)), Z]), self.coefficients_)

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        keys = ("coefficients_", "centre_", "scale_", "support_")
        save_file({key: getattr(self, key) for key in keys}, Path(folder) / "linear.safetensors")
        told = {"task": self.task, "noise_variance": self.noise_variance_}
        (Path(folder) / "linear.json").write_text(json.dumps(told))


class LinearRegressor(_Linear):
    task = "regression"

    def predict_members(self, X):
        return self._members(X)[:, :, 0]

    def predict(self, X, return_std=False):
        members = self.predict_members(X)
        std = np.sqrt(members.var(0) + self.noise_variance_)
        return (members.mean(0), std) if return_std else members.mean(0)

    def predict_interval(self, X, coverage=0.9):
        mean, std = self.predict(X, return_std=True)
        half = ndtri(0.5 + coverage / 2) * std
        return np.column_stack([mean - half, mean + half])


class LinearClassifier(_Linear):
    task = "classification"

    def predict_members(self, X):
        score = ndtr(3 * (self._members(X) - 0.5)) + 1e-3
        return score / score.sum(axis=2, keepdims=True)

    def predict_proba(self, X):
        return self.predict_members(X).mean(axis=0)


def load_linear(folder):
    told = json.loads((Path(folder) / "linear.json").read_text())
    model = {"regression": LinearRegressor, "classification": LinearClassifier}[told["task"]]()
    for key, value in load_file(Path(folder) / "linear.safetensors").items():
        setattr(model, key, value)
    model.noise_variance_ = told["noise_variance"]
    return model


ESTIMATORS = {"regression": LinearRegressor, "classification": LinearClassifier}
