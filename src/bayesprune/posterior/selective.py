"""Selective prediction: how wrong is what a model keeps, if it may refuse the inputs that it doubts?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesprune.posterior.metrics import array_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """Risk of the surest inputs by the share of inputs kept, from `risk_coverage`.

    Attributes:
        coverage: (k,) shares of the inputs, increasing to 1; one point for each distinct uncertainty.
        risk: (k,) mean loss of the inputs kept.
        area: mean over the inputs of the risk at which each is reached: the area under the curve (AURC).
        least_area: that area if the uncertainties were in the order of the losses; no order does better.

    Example:
        >>> curve = risk_coverage([0.1, 0.9], [False, True])
        >>> curve.coverage.tolist(), curve.risk_at(0.5), curve.risk_at(1.0)
        ([0.5, 1.0], 0.0, 0.5)
    """

    coverage: Array
    risk: Array
    area: float
    least_area: float

    def risk_at(self, coverage: float) -> float:
        """The risk when at least this share of the inputs is kept.

        Args:
            coverage: a share in (0, 1].

        Raises:
            ValueError: if it is not.
        """
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage={coverage}: must lie in (0, 1]")
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])


def risk_coverage(uncertainty: Any, loss: Any) -> RiskCoverage:
    r"""The risk–coverage curve: the mean loss of the inputs of least uncertainty, for every share of them.

    With the inputs in the order of their uncertainty u, the curve at coverage k/n is

        risk(k/n) = (1/k) Σ_{i ≤ k} loss_i

    Inputs of equal uncertainty are kept or refused together.

    Args:
        uncertainty: (n,) numbers, larger means more doubtful; for example ``prediction.total`` or ``-prediction.confidence``.
        loss: (n,) losses that are not negative; booleans mean wrong.

    Returns:
        A `RiskCoverage`.

    Raises:
        ValueError: if there are no inputs, the lengths differ, or a value is NaN or negative where it must not be.

    Example:
        >>> curve = risk_coverage([0.1, 0.2, 0.3, 0.9], [False, False, False, True])
        >>> curve.risk.tolist(), curve.risk_at(0.75), curve.area == curve.least_area
        ([0.0, 0.0, 0.0, 0.25], 0.0, True)

    Reference:
        Geifman & El-Yaniv (2017), "Selective classification for deep neural networks"; Geifman, Uziel & El-Yaniv (2019),
        "Bias-reduced uncertainty estimation for deep neural classifiers", for the area.
    """
    doubt, cost = array_of(uncertainty), array_of(loss)
    if doubt.ndim != 1 or doubt.shape != cost.shape or not len(doubt):
        raise ValueError(f"uncertainty {doubt.shape} and loss {cost.shape}: give one number of each for every input")
    if np.isnan(doubt).any() or not (cost >= 0).all():
        raise ValueError("uncertainty holds NaN, or loss a value that is negative or NaN")
    count = np.arange(1, len(doubt) + 1)
    order = np.argsort(doubt, kind="stable")
    ranked = doubt[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each group of equal uncertainty, infinities too
    risk = (np.cumsum(cost[order]) / count)[last]
    coverage = (count / len(doubt))[last]
    area = float(np.sum(risk * np.diff(coverage, prepend=0.0)))
    return RiskCoverage(coverage, risk, area, float(np.mean(np.cumsum(np.sort(cost)) / count)))
