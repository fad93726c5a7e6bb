"""Two functions timed in turns in one run, and the confidence interval of the ratio of their times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """Times of two functions and how many times faster the second is.

    Attributes:
        before: Median seconds of the first.
        after: Median seconds of the second.
        ratio: before / after: above 1, the second is faster.
        low: Lower end of the ratio's confidence interval.
        high: Upper end.
        confidence: The interval's coverage.
        rounds: Number of times each was called.

    Example:
        >>> fast = Comparison(before=2e-3, after=1e-3, ratio=2.0, low=1.9, high=2.1, confidence=0.95, rounds=50)
        >>> fast.low > 1
        True
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    confidence: float
    rounds: int


def compare_times(
    before: Callable[[], Any],
    after: Callable[[], Any],
    *,
    seconds: float = 2.0,
    rounds: tuple[int, int] = (15, 400),
    confidence: float = 0.95,
) -> Comparison:
    r"""Time two functions in turns, so that both see the same machine, and give the ratio of their medians.

    Round r times both, in changing order. The interval is a percentile bootstrap (2000 draws, fixed seed) over rounds of

        ratio = median_r t_before(r) / median_r t_after(r).

    It covers the scatter within this run; another machine, or another load, is another question.

    Args:
        before: called without arguments.
        after: likewise.
        seconds: time to spend on both together, after one call each to warm up.
        rounds: the fewest and the most rounds.
        confidence: coverage of the interval.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> small, large = torch.ones(64, 64), torch.ones(512, 512)
        >>> result = compare_times(lambda: large @ large, lambda: small @ small, seconds=0.05)
        >>> result.low <= result.ratio <= result.high
        True

    Reference:
        Efron & Tibshirani (1993), "An introduction to the bootstrap", section 13.3.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    if not 3 <= rounds[0] <= rounds[1]:
        raise ValueError(f"rounds={rounds}: give the fewest (at least 3) and the most")
    for function in (before, after):
        _timed(function)
    rows: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < rounds[0] or (len(rows) < rounds[1] and time.perf_counter() < end):
        if len(rows) % 2:
            second = _timed(after)
            first = _timed(before)
        else:
            first = _timed(before)
            second = _timed(after)
        rows.append((first, second))
    times = np.array(rows)
    medians = np.median(times, axis=0)
    draws = np.random.default_rng(0).integers(len(times), size=(2000, len(times)))
    resampled = np.median(times[draws], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [tail, 1 - tail])
    ratio = float(medians[0] / medians[1])
    # A percentile interval of a ratio of medians always reaches the ratio up to ties.
    return Comparison(
        float(medians[0]),
        float(medians[1]),
        ratio,
        min(float(low), ratio),
        max(float(high), ratio),
        confidence,
        len(rows),
    )


def _timed(function: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
