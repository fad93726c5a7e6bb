"""Student's t for noise with tails; None degrees of freedom is the normal distribution."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln, ndtr

DEGREES = (None, 20, 10, 6, 4)  # even, for which the distribution function is a short sum; a variance needs more than 2


def log_density(square: np.ndarray, dof: int | None) -> np.ndarray:
    """Return the log density at z of unit scale, given z²."""
    if dof is None:
        return -0.5 * (square + math.log(2 * math.pi))
    norm = float(gammaln((dof + 1) / 2) - gammaln(dof / 2)) - 0.5 * math.log(dof * math.pi)
    return norm - 0.5 * (dof + 1) * np.log1p(square / dof)


def distribution(z: np.ndarray, dof: int | None) -> np.ndarray:
    """Return P(Z ≤ z) of unit scale: ½ + ½ sin θ·(1 + ½ cos²θ + ½·¾ cos⁴θ + …), tan θ = z/√ν, for even ν.

    Example:
        >>> distribution(np.array([0.0, 2.131847]), 4).round(4).tolist()
        [0.5, 0.95]

    Reference:
        Abramowitz & Stegun, 26.7.4.
    """
    if dof is None:
        return np.asarray(ndtr(z))
    cosine, term, total = dof / (dof + z * z), np.ones_like(z), np.ones_like(z)
    for j in range(1, dof // 2):
        term = term * cosine * ((2 * j - 1) / (2 * j))
        total = total + term
    return 0.5 + 0.5 * z / np.sqrt(dof + z * z) * total


def variance_over_scale(dof: int | None) -> float:
    """Return the variance of unit scale, ν/(ν − 2)."""
    return 1.0 if dof is None else dof / (dof - 2)
