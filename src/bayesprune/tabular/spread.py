"""Which inputs act on the noise's variance: the test of each input, with the size of what is left of y as the response."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bayesprune.tabular.candidates import winsorised
from bayesprune.tabular.conditional import ColumnModel, ConditionalModels
from bayesprune.tabular.tails import larger_tail, white_sums

_MOST, _LEAST = 64, 2.0  # inputs that are tested, and the score by themselves below which none is
_CLIP = 3.0  # robust standard deviations beyond which a size is an outlier


def variance_p_values(
    left: np.ndarray, weight: np.ndarray, models: ConditionalModels, units: Sequence[np.ndarray]
) -> np.ndarray:
    """Return (m,) two-sided p-values of the inputs, 1 for those not tested.

    A column has two statistics, x − E x̃ and x² − E x̃²: the noise may be large at both ends. The size |y − m| goes without what
    ridge regressions on the other inputs, and on the squares of those that may matter, say of it.
    """
    size = np.abs(winsorised(left, _CLIP)) * weight
    size = size - size.mean()
    _, fitted, coefficient, share = models.explained(size)
    result = np.ones(len(units))
    tested = _strongest(size, models.X, units)
    squares = _Squares(models.X, [column for j in tested for column in units[j]])
    for j in tested:
        model, curved = models.of(units[j]), squares.without(units[j])
        linear = size - fitted + model.residual @ coefficient[units[j]]
        said, freedom = _fit(curved, linear)
        flat = winsorised(linear - said, _CLIP)[:, None]
        flat -= flat.mean()
        scale = 1 / (1 - min(share + freedom, 0.9))
        values, variances = _statistics(model)
        tails = []
        for value, variance in zip(values.T, variances.T):
            left_over = (value - _fit(curved, value)[0])[:, None]
            sums = white_sums(flat, left_over, flat[:, 0] ** 2 @ variance, scale)
            tails.append(larger_tail(np.array(sums), [(flat, math.sqrt(scale) * left_over)], two_sided=True))
        result[j] = min(1.0, 2 * len(tails) * math.exp(min(tails)))
    return result


class _Squares:
    """The standardised squares of some columns."""

    def __init__(self, X: np.ndarray, columns: Sequence[int]) -> None:
        squares = X[:, list(columns)].astype(np.float64) ** 2
        squares -= squares.mean(0)
        deviation = squares.std(0)
        held = deviation > 1e-6  # of ±1 the square is a constant
        self.columns = np.asarray(columns, dtype=np.int64)[held]
        self.values = squares[:, held] / deviation[held]

    def without(self, columns: np.ndarray) -> ConditionalModels | None:
        """Return ridge regressions on all squares but those of these columns, None where there is no other."""
        others = self.values[:, ~np.isin(self.columns, columns)]
        return ConditionalModels(others, np.zeros(others.shape[1], dtype=bool)) if others.shape[1] else None


def _fit(models: ConditionalModels | None, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return what a ridge regression says of y, and its degrees of freedom over the rows."""
    if models is None:
        return np.zeros(len(y)), 0.0
    _, fitted, _, share = models.explained(y)
    return fitted, share


def _statistics(model: ColumnModel) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, k) x − E x̃ and, unless the columns have few values, x² − E x̃², each with its variance."""
    residual, variance, fitted = model.residual, model.variances(), model.fitted
    if model.discrete:
        return residual, variance
    square = 2 * fitted * residual + residual**2 - variance
    third, fourth = (residual**3).mean(0), (residual**4).mean(0)
    spread = 4 * fitted**2 * variance + 4 * fitted * third + fourth - variance**2
    return np.hstack([residual, square]), np.hstack([variance, spread])


def _strongest(size: np.ndarray, X: np.ndarray, units: Sequence[np.ndarray]) -> list[int]:
    """Return the inputs of which a column or its square is most correlated with the size, by itself."""
    flat = (size / max(float(np.sqrt(size @ size)), 1e-300)).astype(X.dtype)
    score = np.abs(flat @ X)  # of standardised columns: about |N(0, 1)| without an effect
    for start in range(0, X.shape[1], 1024):
        square = X[:, start : start + 1024] ** 2
        score[start : start + 1024] = np.maximum(
            score[start : start + 1024], np.abs(flat @ (square - square.mean(0))) / np.maximum(square.std(0), 1e-3)
        )
    strongest = np.array([score[unit].max() for unit in units])
    return [j for j in np.argsort(-strongest, kind="stable")[:_MOST].tolist() if strongest[j] >= _LEAST]
