"""How far a fit has come, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CURRENT: ContextVar[Callable[[], None] | None] = ContextVar("progress", default=None)
_EVERY = 10.0  # seconds between two lines


@contextmanager
def progress(steps: int, shown: bool = True, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Say on the standard error stream, at most every 10 s, how many of the steps inside the block are done."""
    begin = told = clock()
    done = 0

    def count() -> None:
        nonlocal done, told
        done, now = done + 1, clock()
        if now - told >= _EVERY:
            told, share = now, min(done / max(1, steps), 0.99)
            left = (now - begin) * (1 - share) / share
            print(f"{100 * share:.0f} % of the training steps, about {left:.0f} s left", file=sys.stderr, flush=True)

    before = _CURRENT.set(count if shown else None)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def step_done() -> None:
    """Count a training step, if somebody waits for it."""
    count = _CURRENT.get()
    if count is not None:
        count()
