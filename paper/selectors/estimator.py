"""What the variable-selection baselines share as estimators: parameters, checks, coding of y, prediction, selection."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.checks import check_number
from paper.selectors.network import BatchedNetwork


class SelectionEstimator:
    """Base of the baselines: scikit-learn's conventions without importing scikit-learn.

    Subclasses store their keywords unchanged, learn attributes that end in `_`, and give `_train(X, y)`, which sets
    `support_` and `inclusion_probability_`, and `_network`, whose outputs (members, outputs, rows) from `_columns` are
    averaged.
    `sklearn.base.clone`, pipelines and grid searches work through `get_params`, `set_params`, `transform` and `score`.

    Args:
        standardize: scale the columns (and the response of a regression) to mean 0 and variance 1 inside; predictions
            are on the original scale. Off as in the papers, whose simulated columns have unit variance.
        random_state: seed of every draw; None takes a fresh one. The global generators are never touched.
    """

    n_features_in_: int
    support_: np.ndarray
    inclusion_probability_: np.ndarray
    _network: BatchedNetwork
    _columns: Tensor

    def __init__(self, *, standardize: bool = False, random_state: int | None = None) -> None:
        self.standardize = standardize
        self.random_state = random_state

    # ---- parameters

    @classmethod
    def _names(cls) -> list[str]:
        names: list[str] = []
        for base in cls.__mro__:
            if "__init__" in vars(base) and base is not object:
                for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                    if parameter.kind is parameter.KEYWORD_ONLY and name not in names:
                        names.append(name)
        return sorted(names)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's keywords and their values; `deep` is scikit-learn's and changes nothing here."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> SelectionEstimator:
        """Set constructor keywords; an unknown one is refused."""
        for name, value in params.items():
            if name not in self._names():
                raise ValueError(f"{name}={value!r} is no parameter; use one of {', '.join(self._names())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({inner})"

    # ---- fitting

    def fit(self, X: Any, y: Any) -> SelectionEstimator:
        """Fit to rows X (n, p) and responses y (n,); return self.

        Raises:
            ValueError: a keyword outside its range, or data that are not finite numbers of matching length.
        """
        array = self._check(X)
        if len(array) < 2:
            raise ValueError(f"X has {len(array)} row: give at least 2")
        target = np.asarray(y)
        if target.shape != (len(array),):
            raise ValueError(f"y has shape {target.shape}: give one response for each of the {len(array)} rows of X")
        self.n_features_in_ = array.shape[1]
        self._shift, self._scale = np.zeros(array.shape[1], np.float32), np.ones(array.shape[1], np.float32)
        if self.standardize:
            deviation = array.std(0, dtype=np.float64)
            self._shift = array.mean(0, dtype=np.float64).astype(np.float32)
            self._scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
        seed = torch.Generator().seed() if self.random_state is None else int(self.random_state)
        self._generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self._train(self._rows(array), self._encode(target))
        return self

    def _train(self, X: Tensor, y: Tensor) -> None:
        raise NotImplementedError

    def _encode(self, y: np.ndarray) -> Tensor:
        raise NotImplementedError

    def _outputs(self, X: Tensor) -> Tensor:
        return self._network.predict(X[:, self._columns])

    def _check(self, X: Any) -> np.ndarray:
        array = np.asarray(X, dtype=np.float32)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"X has shape {array.shape}: give a table of rows and columns")
        if not np.isfinite(array).all():
            raise ValueError("X holds NaN or infinite values: impute or drop them first")
        return array

    def _rows(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(
            (array - self._shift) / self._scale if self.standardize else np.ascontiguousarray(array)
        )

    def _fitted_rows(self, X: Any) -> Tensor:
        if not hasattr(self, "support_"):
            raise AttributeError(f"{type(self).__name__} is not fitted: call fit(X, y) first")
        array = self._check(X)
        if array.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {array.shape[1]} columns, but fit saw {self.n_features_in_}")
        return self._rows(array)

    # ---- selection

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Return the mask of the selected columns (p,), or their numbers if `indices`."""
        if not hasattr(self, "support_"):
            raise AttributeError(f"{type(self).__name__} is not fitted: call fit(X, y) first")
        return np.flatnonzero(self.support_) if indices else self.support_

    def transform(self, X: Any) -> np.ndarray:
        """Return the selected columns of X."""
        self._fitted_rows(X)
        return np.asarray(X)[:, self.support_]


class RegressionMixin:
    """Gaussian likelihood with a fixed noise variance, as in both papers.

    Args:
        noise_variance: σ², in the units of y (of the standardised y if `standardize`).
        **keywords: the method's keywords.
    """

    _task = "gaussian"
    _estimator_type = "regressor"

    def __init__(self, *, noise_variance: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.noise_variance = noise_variance

    def _encode(self: Any, y: np.ndarray) -> Tensor:
        check_number("noise_variance", self.noise_variance, minimum=0, strict=True)
        y = y.astype(np.float32)
        if not np.isfinite(y).all():
            raise ValueError("y holds NaN or infinite values: drop those rows first")
        self._sigma2, self._width = float(self.noise_variance), 1
        self._y_shift, self._y_scale = 0.0, 1.0
        if self.standardize:
            self._y_shift, self._y_scale = float(y.mean()), float(y.std()) or 1.0
        return torch.from_numpy((y - np.float32(self._y_shift)) / np.float32(self._y_scale))

    def predict(self: Any, X: Any) -> np.ndarray:
        """Return the predicted mean of each row (n,)."""
        with torch.no_grad():
            mean = self._outputs(self._fitted_rows(X))[:, 0].mean(0)
        return mean.numpy() * np.float32(self._y_scale) + np.float32(self._y_shift)

    def score(self: Any, X: Any, y: Any) -> float:
        """Return the coefficient of determination R² of the predictions."""
        y = np.asarray(y, dtype=np.float64)
        return float(1 - np.mean((y - self.predict(X)) ** 2) / np.var(y))


class ClassificationMixin:
    """One logit for two classes, one output a class (softmax) for more."""

    _estimator_type = "classifier"
    classes_: np.ndarray

    def _encode(self: Any, y: np.ndarray) -> Tensor:
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y holds NaN or infinite values: drop those rows first")
        self.classes_, codes = np.unique(y, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise ValueError(f"y holds {count} class: give at least 2")
        self._sigma2, self._task, self._width = 1.0, "binary" if count == 2 else "softmax", 1 if count == 2 else count
        return torch.from_numpy(codes.astype(np.float32 if count == 2 else np.int64))

    def predict_proba(self: Any, X: Any) -> np.ndarray:
        """Return the probability of each class (n, classes), averaged over the members."""
        with torch.no_grad():
            f = self._outputs(self._fitted_rows(X)).double()
            one = torch.sigmoid(f[:, 0]).mean(0)
            p = torch.stack([1 - one, one], 1) if self._task == "binary" else f.softmax(1).mean(0).T
        return p.numpy()

    def predict(self: Any, X: Any) -> np.ndarray:
        """Return the most probable class of each row (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score(self: Any, X: Any, y: Any) -> float:
        """Return the share of rows whose class is predicted."""
        return float(np.mean(self.predict(X) == np.asarray(y)))


def check_integer(name: str, value: Any, least: int) -> int:
    """Return `value` if it is an integer of at least `least`, else raise ValueError.

    Example:
        >>> check_integer("steps", 3, 1)
        3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r} is out of range; give an integer of at least {least}")
    return int(value)


def check_sizes(hidden_layer_sizes: Any) -> tuple[int, ...]:
    """Return the hidden layers' sizes as a tuple, else raise ValueError.

    Example:
        >>> check_sizes([5, 3])
        (5, 3)
    """
    if not isinstance(hidden_layer_sizes, (tuple, list)) or not hidden_layer_sizes:
        raise ValueError(f"hidden_layer_sizes={hidden_layer_sizes!r}: give a tuple of at least one integer")
    return tuple(check_integer("hidden_layer_sizes", size, 1) for size in hidden_layer_sizes)
