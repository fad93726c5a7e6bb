"""Nonlinear variable selection: estimators of inputs that matter and of what they predict."""

from __future__ import annotations

import importlib
from typing import Any

_WITH_SKLEARN = {  # imported when asked for
    "SparseBNNRegressor": "estimators",
    "SparseBNNClassifier": "estimators",
    "fit_many": "estimator_base",
    "load": "estimators",
}

__all__ = ["SparseBNNRegressor", "SparseBNNClassifier", "fit_many", "load"]


def __getattr__(name: str) -> Any:
    """Import the scikit-learn estimators on first use: reading a model's files needs none of them."""
    if name in _WITH_SKLEARN:
        return getattr(importlib.import_module(f"bayesprune.tabular.{_WITH_SKLEARN[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
