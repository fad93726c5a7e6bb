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
    if not tested:
        return result
    curved = _Squares(models.X, np.concatenate([units[j] for j in tested]), size - fitted)
    scale = 1 / (1 - min(share + curved.share, 0.9))
    for j in tested:
        model = models.of(units[j])
        linear = size - fitted + model.residual @ coefficient[units[j]]
        flat = winsorised(linear - curved.without(units[j]), _CLIP)
        flat = (flat - flat.mean())[:, None]
        values, variances = _statistics(model)
        tails = []
        for value, variance in zip(values.T[..., None], variances.T):
            sums = white_sums(flat, value, flat[:, 0] ** 2 @ variance, scale)
            tails.append(larger_tail(np.array(sums), [(flat, math.sqrt(scale) * value)], two_sided=True))
        result[j] = min(1.0, 2 * len(tails) * math.exp(min(tails)))
    return result


class _Squares:
    """What the squares of some columns say of a response, ridge-regressed."""

    def __init__(self, X: np.ndarray, columns: np.ndarray, y: np.ndarray) -> None:
        squares = X[:, columns].astype(np.float64) ** 2
        squares -= squares.mean(0)
        deviation = squares.std(0)
        held = deviation > 1e-6  # of ±1 the square is a constant
        self.place = {int(column): at for at, column in enumerate(columns[held])}
        self.values = squares[:, held] / deviation[held]
        self.fitted, self.coefficient, self.share = np.zeros(len(X)), np.zeros(0), 0.0
        if self.place:
            models = ConditionalModels(self.values, np.zeros(len(self.place), dtype=bool))
            _, self.fitted, self.coefficient, self.share = models.explained(y)

    def without(self, columns: np.ndarray) -> np.ndarray:
        """Return (n,) what all squares but those of these columns say."""
        own = [self.place[int(column)] for column in columns if int(column) in self.place]
        return self.fitted - self.values[:, own] @ self.coefficient[own]


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
