"""Times of several networks, taken in turns in one process: the best of each, and how the ratios vary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

BLOCKS = 10


def best_times(
    calls: dict[str, Sequence[Callable[[], Any]]], reference: str, *, seconds: float = 4.0, fewest: int = 5
) -> dict[str, dict[str, Any]]:
    """Time calls in turns, without gradients, and give each name's best time beside the reference's."""
    best = np.full((BLOCKS, len(calls)), np.inf)
    with torch.inference_mode():
        for ways in calls.values():
            for way in ways:
                way()
        for block in range(BLOCKS):
            end, rounds = time.perf_counter() + seconds / BLOCKS, 0
            while rounds < fewest or time.perf_counter() < end:
                rounds += 1
                for place, ways in enumerate(calls.values()):
                    for way in ways:
                        start = time.perf_counter()
                        way()
                        best[block, place] = min(best[block, place], time.perf_counter() - start)
    column = list(calls).index(reference)
    ratios, whole = best[:, [column]] / best, best.min(0)
    return {
        name: {
            "ms": 1e3 * float(whole[place]),
            "speed": [
                float(whole[column] / whole[place]),
                float(ratios[:, place].min()),
                float(ratios[:, place].max()),
            ],
        }
        for place, name in enumerate(calls)
    }
