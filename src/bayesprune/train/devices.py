"""Where the loop runs, and how it is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch


def fabric(device: str, precision: str) -> Any:
    """Return Lightning Fabric on one device; `auto` is cuda where there is one, else the CPU."""
    try:
        import logging

        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError('training needs Lightning Fabric: pip install "bayesprune[train]"') from error
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device='cuda', but torch sees no CUDA device; use device=cpu, or install a CUDA build of torch."
        )
    if device == "auto":  # not Fabric's own choice: it would take mps, which has no float64
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]


@contextmanager
def interruptible() -> Iterator[Any]:
    """Turn the first SIGINT or SIGTERM into a flag that the loop reads between two steps; a second SIGINT ends at
    once.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        os.write(
            2, b"\nstopping after this step, with a checkpoint (again to stop at once)\n"
        )  # print is not reentrant

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals stay as they are
        pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
