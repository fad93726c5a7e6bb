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
    """Time calls in turns, without gradients, and give each name's best time beside the reference's.

    What else the machine does can only add to a time: the least of many is the network's own. A name with several calls (the
    same network run in several ways) takes its fastest. The rounds fall into ten blocks, each with a best and a ratio of its
    own, whose least and greatest are the interval.

    Args:
        calls: By name, ways to run a network.
        reference: The name by whose time the others are divided.
        seconds: Time to spend on all of them.
        fewest: Rounds in a block at least.

    Returns:
        By name: "ms", and "speed", the reference's time over its own: of the best of all, least and greatest of the blocks.

    Example:
        >>> small, large = torch.ones(8, 8), torch.ones(300, 300)
        >>> found = best_times({"a": [lambda: large @ large], "b": [lambda: small @ small]}, "a", seconds=0.01)
        >>> found["b"]["speed"][0] > 1, found["a"]["speed"]
        (True, [1.0, 1.0, 1.0])
    """
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
