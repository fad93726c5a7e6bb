"""How likely a sum of residuals times draws is as large as the one seen: the saddlepoint's tail, which knows skewness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

_ENDS, _BINS = 32, 96  # numbers that stay themselves at either end, and bins between them
_SAMPLE = 512  # points of a law of several dimensions
_DOUBTFUL = 0.1  # normal tails above it are taken as they are


@dataclass(frozen=True)
class Terms:
    """Σ rᵢ·Eᵢ with independent Eᵢ of one law: residuals (g, k) that count so often, and points (h, k) with probabilities."""

    residuals: np.ndarray
    counts: np.ndarray
    points: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, residuals: np.ndarray, draws: np.ndarray) -> Terms:
        """Return the terms of residuals (n, k) and a sample (m, k) of the law, whose mean is made 0."""
        draws = draws - draws.mean(0)
        if residuals.shape[1] == 1:
            rows, counts = _binned(residuals[:, 0])
            points, numbers = _binned(draws[:, 0])
            return cls(rows[:, None], counts, points[:, None], numbers / numbers.sum())
        points, shares = _represented(draws)
        return cls(residuals, np.ones(len(residuals)), points - shares @ points, shares)

    def cumulants(self, t: float) -> tuple[float, float, float]:
        """Return K(t), K′(t) and K″(t) of the sum's cumulant generating function."""
        product = self.residuals @ self.points.T
        exponent = t * product
        most = exponent.max(1, keepdims=True)
        tilted = np.exp(exponent - most) * self.shares
        total = tilted.sum(1)
        first = (tilted * product).sum(1) / total
        second = (tilted * product**2).sum(1) / total - first**2
        logarithm = most[:, 0] + np.log(total)
        return float(self.counts @ logarithm), float(self.counts @ first), float(self.counts @ second)


def white_sums(
    r: np.ndarray, h: np.ndarray, variance: float, inflation: float, weight: np.ndarray | float = 1.0
) -> tuple[float, float]:
    """Return Σ w·r·h and its variance: that of draws, or what the rows themselves show (White's) where that is larger."""
    total = float((weight * r * h).sum())
    slope = total / max(float((weight * h * h).sum()), 1e-300)
    shown = float(((weight * (r - slope * h) * h).sum(1) ** 2).sum())
    return total, inflation * max(variance, shown)


def larger_tail(sums: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]], *, two_sided: bool = False) -> float:
    """Return log P(S ≥ value), of |S| on the value's side: the normal tail, or the saddlepoint's where that is larger.

    Args:
        sums: The value and its variance.
        parts: Residuals and a sample of what they are multiplied with, as `Terms.of` takes them; none: the normal tail.
        two_sided: The value may be of either sign.
    """
    value, side = float(sums[0]), -1.0 if two_sided and sums[0] < 0 else 1.0
    normal = float(log_ndtr(-side * value / math.sqrt(max(float(sums[1]), 1e-300))))
    if not parts or normal > math.log(_DOUBTFUL):
        return normal
    return max(normal, log_tail([Terms.of(side * residuals, draws) for residuals, draws in parts], side * value))


def log_tail(parts: Sequence[Terms], value: float) -> float:
    """Return log P(S ≥ value) of the sum S of independent parts, for a value above its mean 0 (Lugannani–Rice, in r*)."""

    def cumulants(t: float) -> np.ndarray:
        return np.sum([part.cumulants(t) for part in parts], axis=0)

    variance = cumulants(0.0)[2]
    if value <= 0 or variance <= 0:
        return 0.0
    low, high, t = 0.0, math.inf, value / variance
    for _ in range(60):  # Newton's steps for K′(t) = value, K′ grows; halved or doubled where they leave what is known
        total, first, second = cumulants(t)
        if abs(first - value) <= 1e-6 * value:
            break
        low, high = (t, high) if first < value else (low, t)
        step = t - (first - value) / second if second > 0 else math.inf
        t = step if low < step < high else 2 * t if high == math.inf else (low + high) / 2
    w, u = math.sqrt(max(0.0, 2 * (t * value - total))), t * math.sqrt(max(second, 0.0))
    if w < 1e-3 or u <= 0:
        return float(log_ndtr(-w))
    return float(log_ndtr(-(w + math.log(u / w) / w)))


def _represented(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return few points and their probabilities for a sample in several dimensions: the far ones, and one for each bin of the rest."""
    if len(draws) <= _SAMPLE:
        return draws, np.full(len(draws), 1 / len(draws))
    half = _SAMPLE // 2
    order = np.argsort(-np.linalg.norm(draws, axis=1), kind="stable")
    bins, generator = np.array_split(order[half:], half), np.random.default_rng(0)
    points = np.concatenate([draws[order[:half]], draws[[generator.choice(part) for part in bins]]])
    return points, np.concatenate([np.ones(half), [len(part) for part in bins]]) / len(draws)


def _binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return few numbers and how often each stands for one of the values: the ends as they are, means of bins between."""
    ordered = np.sort(values)
    if len(ordered) <= 2 * _ENDS + _BINS:
        return ordered, np.ones(len(ordered))
    bins = [part for part in np.array_split(ordered[_ENDS:-_ENDS], _BINS) if len(part)]
    middle, sizes = [float(part.mean()) for part in bins], [len(part) for part in bins]
    numbers = np.concatenate([ordered[:_ENDS], middle, ordered[-_ENDS:]])
    return numbers, np.concatenate([np.ones(_ENDS), sizes, np.ones(_ENDS)]).astype(float)
