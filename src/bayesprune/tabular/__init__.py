"""Nonlinear variable selection: estimators, and simulated designs with known true inputs and known noise floors."""

from __future__ import annotations

from bayesprune.common.lazy import lazy
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

_WITH_SKLEARN = {  # imported when asked for: the simulated designs need numpy only
    "bayesprune.tabular.estimators": "SparseBNNRegressor SparseBNNClassifier load",
    "bayesprune.tabular.estimator_base": "fit_many",
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

__getattr__ = lazy(__name__, _WITH_SKLEARN, extra="tabular")
