"""Which inputs act on the noise's variance: the test of each input, with the size of what is left of y as the response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr

from bayesprune.tabular.candidates import winsorised
from bayesprune.tabular.conditional import ColumnModel, ConditionalModels

_MOST, _LEAST = 64, 2.0  # inputs that are tested, and the score by themselves below which none is
_CLIP = 3.0  # robust standard deviations beyond which a size is an outlier


def variance_p_values(
    left: np.ndarray, weight: np.ndarray, models: ConditionalModels, units: Sequence[np.ndarray]
) -> np.ndarray:
    """Return (m,) two-sided p-values of the inputs, 1 for those not tested.

    A column has two statistics, x − E x̃ and x² − E x̃²: the noise may be large at both ends. The size |y − m| goes without what a
    ridge regression on the other inputs says of it.
    """
    size = np.abs(winsorised(left, _CLIP)) * weight
    size = size - size.mean()
    _, fitted, coefficient, share = models.explained(size)
    result = np.ones(len(units))
    for j in _strongest(size, models.X, units):
        model = models.of(units[j])
        flat = winsorised(size - fitted + model.residual @ coefficient[units[j]], _CLIP)
        value, variance = _statistics(model)
        z = np.abs(flat @ value) / np.sqrt(np.maximum(flat**2 @ variance / (1 - share), 1e-300))
        result[j] = min(1.0, 2 * len(z) * float(np.exp(log_ndtr(-z.max()))))
    return result


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
