"""scikit-learn estimators: a Bayesian network on the inputs that matter, and which they are."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets

from bayesprune.common.artefact import reading
from bayesprune.common.tensors import LIMIT
from bayesprune.tabular.estimator_base import SparseBNN
from bayesprune.tabular.store import read_estimator
from bayesprune.tabular.student import distribution, log_density, variance_over_scale


class SparseBNNRegressor(RegressorMixin, SparseBNN):
    r"""Bayesian neural network for regression that finds the inputs that matter among thousands.

    1. **Search**: chains of CV-Adam on all inputs, pruned by EM-MCMC with the group spike-and-slab prior on input units
       (Algorithm 3 with equation 10); with the least-angle path and a tree ensemble they give the common candidates.
    2. **Evidence**: S = Σ (y − m)·h/√(Σ (y − m)²·Var f(x̃)) on rows that a chain's network f has not seen, x̃ a draw of
       the input given all others, m = E f(x̃), h = f(x) − m: about standard normal where y does not depend on the
       input given all others. Inputs that the rows cannot tell apart are one cluster, found as one. 3. **Fit**:
       posterior samples of networks on what was found, each of which leaves out some rows, with the noise's level
       measured there; predictions average over them.

    Everything is standardised inside. Chains, and with `fit_many` data sets, are one batched computation. A pandas data
    frame may hold numbers, dates, text, categories and missing values; predictions need the columns in `inputs_` only.

    Args:
        hidden_layer_sizes: hidden widths of the predictive network, or "auto" (64, 64; from 1,000 rows on four layers of
            32); the paper's (5, 3) or (6, 4, 3) on request, from many starts.
        activation: "relu", "tanh", "silu" or "auto": ReLU for a given network; else tanh, from 1,000 rows on silu.
        feedback: "none" (DFP: what the search prunes never returns) or "masked" (DPF: it may).
        n_chains: chains, and folds of the rows, or "auto" (5; 4 from 5,000 rows, 3 below 50).
        select: "auto" takes the findings; its predictions read further inputs too where held-out rows are predicted
            better with them (`inputs_`), each chain's strongest with their number cross-validated, and average over the
            chains. "fdr" takes and reads the findings alone, "probability" and "number" go by the inclusion probability;
            "prediction" takes what predicts best, with no control of errors, in the way of "auto".
        fdr: false-discovery rate over clusters.
        probability: smallest inclusion probability, for select="probability".
        n_inputs: how many, for select="number".
        expected_inputs: inputs expected to matter, or "auto" (empirical Bayes).
        groups: lists of columns that are selected together, by number or by the data frame's names; the rest stand alone.
            The encoded columns of one column of a data frame always belong together.
        variance: of y about its mean: "constant", "network" (it depends on the inputs), or "auto", whichever gives left-out
            rows the higher density; "auto" is constant below 1,000 rows and for a given network. It changes nothing for labels.
        refit: whether to sample a predictive network; False selects only.
        candidates: inputs that a chain keeps, or "auto".
        search_steps: steps of the search, or "auto".
        evidence_steps: steps of every compared network, or "auto".
        fit_steps: steps before sampling, or "auto".
        n_starts: members of the predictive network (at least 5, where each leaves out some rows), or "auto".
        batch_size: rows a step, or "auto".
        n_jobs: threads of a fit; None is one, which is fastest below some ten thousand rows, −1 is all cores.
        random_state: seed, generator of either kind of numpy's, or None; torch's and numpy's global generators are not touched.
        verbose: print the prior and what was selected.

    Attributes:
        support_: (p,) which columns of X are selected; `get_feature_names_out()` names them.
        inputs_: the columns that predictions read, by number, of a data frame after its encoding.
        clusters_: the findings, `Cluster`s of column numbers with their shares, p-value and q-value.
        p_value_: (p,) of the hypothesis that y does not depend on the column given all others; 1 for no candidate.
        q_value_: (p,) the smallest false-discovery rate at which the column's cluster is found.
        variance_p_value_: (p,) of the hypothesis that the size of y's noise does not depend on the column given all others; 1
            for a classifier and for what was not tested.
        variance_support_: (p,) which columns are found by those at `fdr`. With select="auto", and a network that names its
            variance, they are inputs of it.
        inclusion_probability_: (p,) P_j of the two-groups model of the p-values.
        chain_probability_: (chains, p) P_j on each chain's rows alone: their disagreement.
        evidence_: (p,) log Bayes factor of that model, nats.
        feature_importances_: (p,) mean held-out gain over the chains, positive, summing to 1 (0 if nothing matters).
        noise_variance_: of y given X; its mean over the training rows, where it depends on X.
        prior_: numbers of the prior by name, the implied inclusion probabilities among them.
        history_: the search's losses and paths, arrays by name; "number", "number_loss" and "number_taken" are the
            cross-validation of how many inputs the predictions read.
        encoder_: how the columns of a data frame are encoded, with `dropped`, the reasons of those not used; else None.
        n_features_in_, feature_names_in_, n_iter_: as in scikit-learn.

    Example:
        >>> from bayesprune.tabular import SparseBNNRegressor
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((300, 20)); y = 2 * X[:, 3] + 0.5 * rng.standard_normal(300)
        >>> model = SparseBNNRegressor(search_steps=200, evidence_steps=60, fit_steps=200, random_state=0).fit(X, y)
        >>> model.get_support(indices=True)
        array([3])
        >>> model.predict_interval(X[:2], coverage=0.9).shape
        (2, 2)

    Reference:
        Ke & Fan, arXiv 2210.12957, section 4.3 and Algorithm 3; docs/variable_selection.md.
    """

    def _encode(self, y: np.ndarray) -> np.ndarray:
        return np.asarray(y, dtype=np.float64)

    def _outputs(self) -> int:
        """Return the number of outputs of the networks."""
        return 1

    def predict_members(self, X: Any) -> np.ndarray:
        """Return (M, n) predictions of the posterior samples."""
        return self._member_outputs(X)[..., 0].numpy() * self.standardiser_.y_scale + self.standardiser_.y_mean

    def _members(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and the noise's variances of the posterior samples, (M, n) each."""
        outputs, scale = self._member_outputs(X), self.standardiser_.y_scale
        mean = outputs[..., 0].numpy() * scale + self.standardiser_.y_mean
        return mean, self.posterior_.variances(outputs).numpy() * scale**2

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the predictive mean.

        Args:
            X: (n, p).
            return_std: whether to return the predictive standard deviation too (noise and posterior together).

        Returns:
            (n,), or two of them.
        """
        members, variances = self._members(X)
        mean = members.mean(0)
        if not return_std:
            return mean
        return mean, np.sqrt(members.var(0) + variances.mean(0))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Return the central interval of the predictive mixture over the samples.

        Args:
            X: (n, p).
            coverage: probability inside, in (0, 1).

        Returns:
            (n, 2) lower and upper ends.

        Raises:
            ValueError: coverage outside (0, 1).
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage={coverage!r} must lie strictly between 0 and 1")
        members, variances = self._members(X)
        dof = self.posterior_.dof
        scale = np.sqrt(np.maximum(variances / variance_over_scale(dof), 1e-300))
        ends = []
        for level in ((1 - coverage) / 2, (1 + coverage) / 2):
            reach = 10 if dof is None else 10 / min(level, 1 - level)
            low, high = (members - reach * scale).min(0), (members + reach * scale).max(0)
            for _ in range(60):  # bisection on the mixture's distribution function
                middle = 0.5 * (low + high)
                below = distribution((middle - members) / scale, dof).mean(0) < level
                low, high = np.where(below, middle, low), np.where(below, high, middle)
            ends.append(0.5 * (low + high))
        return np.stack(ends, axis=1)

    def log_density(self, X: Any, y: Any) -> np.ndarray:
        """Return log p(y | X, data) of the predictive mixture over the samples.

        Args:
            X: (n, p).
            y: (n,) responses.

        Returns:
            (n,) nats; minus their mean is the negative log-likelihood.

        Raises:
            ValueError: y of another shape than (n,).
        """
        members, variances = self._members(X)
        if np.shape(y) != (members.shape[1],):
            raise ValueError(f"y has shape {np.shape(y)}: expected ({members.shape[1]},), one response a row of X")
        dof = self.posterior_.dof
        square = np.maximum(variances / variance_over_scale(dof), 1e-300)
        each = log_density((np.asarray(y, dtype=np.float64) - members) ** 2 / square, dof) - 0.5 * np.log(square)
        return np.logaddexp.reduce(each, axis=0) - math.log(len(each))


class SparseBNNClassifier(ClassifierMixin, SparseBNN):
    """Bayesian neural network for two or more classes that finds the inputs that matter among thousands.

    As `SparseBNNRegressor`, with the cross-entropy as the loss; see there for the arguments and attributes (there is no
    `noise_variance_`, and `classes_` holds the labels).

    Example:
        >>> from bayesprune.tabular import SparseBNNClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((400, 20)); y = np.where(X[:, 3] > 0, "high", "low")
        >>> model = SparseBNNClassifier(search_steps=200, evidence_steps=60, fit_steps=200, random_state=0).fit(X, y)
        >>> model.get_support(indices=True), model.predict_proba(X[:5]).shape
        (array([3]), (5, 2))

    Reference:
        Ke & Fan, arXiv 2210.12957, section 4.3 and Algorithm 3; docs/variable_selection.md.
    """

    _numeric = False

    def _encode(self, y: np.ndarray) -> np.ndarray:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {self.classes_[0]!r}: a classifier needs at least two")
        return codes.astype(np.int64)

    def _outputs(self) -> int:
        """Return the number of outputs of the networks."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def predict_members(self, X: Any) -> np.ndarray:
        """Return (M, n, classes) probabilities of the posterior samples."""
        outputs = self._member_outputs(X).double()
        if outputs.shape[-1] == 1:
            high = torch.sigmoid(outputs)
            return torch.cat([1 - high, high], -1).numpy()
        return outputs.softmax(-1).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return (n, classes) probabilities, averaged over the posterior samples."""
        return self.predict_members(X).mean(0)

    def predict(self, X: Any) -> np.ndarray:
        """Return (n,) the most probable labels."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]


def load(folder: str | os.PathLike[str], *, limit: int = LIMIT) -> Any:
    """Read a fitted estimator that its `save` wrote.

    Args:
        folder: the folder.
        limit: the most bytes that its file may have.

    Returns:
        The estimator, as it was.

    Raises:
        ArtefactError: the file is damaged or of another format; where there is none, a FileNotFoundError too.

    Example:
        >>> import tempfile
        >>> from bayesprune.tabular import SparseBNNRegressor, load
        >>> X = np.random.default_rng(0).standard_normal((60, 4))
        >>> model = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0).fit(X, X[:, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     bool((load(folder).predict(X) == model.predict(X)).all())
        True
    """
    about, arrays = read_estimator(folder, limit=limit)
    kinds = {kind.__name__: kind for kind in (SparseBNNRegressor, SparseBNNClassifier)}
    with reading(folder, f"one of {', '.join(kinds)}", "restore it from a copy, or fit again"):
        return kinds[about["estimator"]].restored(about, arrays)
