"""Nonlinear variable selection: estimators of inputs that matter and of what they predict."""

from __future__ import annotations

from bayesprune.common.lazy import lazy

_WITH_SKLEARN = {  # imported when asked for
    "bayesprune.tabular.estimators": "SparseBNNRegressor SparseBNNClassifier load",
    "bayesprune.tabular.estimator_base": "fit_many",
}

__all__ = ["SparseBNNRegressor", "SparseBNNClassifier", "fit_many", "load"]

__getattr__ = lazy(__name__, _WITH_SKLEARN, extra="tabular")
