"""Nonlinear variable selection: estimators, and simulated designs with known true inputs and known noise floors."""

from __future__ import annotations

import importlib
from typing import Any

from bayesprune.tabular.dataset import Drawing, SimulatedData, simulate
from bayesprune.tabular.further import b1, c1, d1, k1, n0
from bayesprune.tabular.inputs import block_correlated, equicorrelated, truncated_normal
from bayesprune.tabular.responses import (
    example1_response,
    example2_response,
    example3_response,
    repeated_response,
)
from bayesprune.tabular.simulated import design, designs, example1, example2, example3, small_n

_WITH_SKLEARN = {  # imported when asked for
    "SparseBNNRegressor": "estimators",
    "SparseBNNClassifier": "estimators",
    "fit_many": "estimator_base",
    "load": "estimators",
}

__all__ = [
    "SparseBNNRegressor",
    "SparseBNNClassifier",
    "fit_many",
    "load",
    "SimulatedData",
    "Drawing",
    "design",
    "designs",
    "example1",
    "example2",
    "example3",
    "small_n",
    "n0",
    "k1",
    "c1",
    "b1",
    "d1",
    "simulate",
    "truncated_normal",
    "equicorrelated",
    "block_correlated",
    "example1_response",
    "example2_response",
    "example3_response",
    "repeated_response",
]


def __getattr__(name: str) -> Any:
    """Import the scikit-learn estimators on first use: the simulated designs need numpy only."""
    if name in _WITH_SKLEARN:
        return getattr(importlib.import_module(f"bayesprune.tabular.{_WITH_SKLEARN[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
