"""Where the loop runs, and how it is stopped."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bayesprune.train.parallel import START, launched


def fabric(device: str, precision: str) -> Any:
    """Return Lightning Fabric on one device, or on those of torchrun's processes; `auto` is cuda where there is one, else
    the CPU.
    """
    try:
        import logging

        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        raise ImportError('training needs Lightning Fabric: pip install "bayesprune[train]"') from error
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device='cuda', but torch sees no CUDA device; use device=cpu, or install a CUDA build of torch."
        )
    if device == "auto":  # not Fabric's own choice: it would take mps, which has no float64
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _, processes, here = launched()
    if processes == 1:
        return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    # BatchNorm's statistics are averaged, not taken from the first process
    known = inspect.signature(DistributedDataParallel).parameters
    later = "forward_sync_buffers"  # its name in later versions of torch
    buffers = later if later in known else "broadcast_buffers"
    strategy = DDPStrategy(timeout=timedelta(seconds=START), **{buffers: False})  # type: ignore[arg-type]
    shared = Fabric(
        accelerator=device, devices=here, num_nodes=processes // here, strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    shared.launch()
    return shared


@contextmanager
def interruptible() -> Iterator[Any]:
    """Turn the first SIGINT or SIGTERM into a flag that the loop reads between two steps; a second SIGINT ends at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        # print is not reentrant
        os.write(2, b"\nstopping after this step, with a checkpoint (again to stop at once)\n")

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


class Watched:
    """Batches that can be read again and again, with a call before each."""

    def __init__(self, batches: Iterable[Any], before: Callable[[], None]) -> None:
        self.batches, self.before = batches, before

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches from the first."""
        for batch in self.batches:
            self.before()
            yield batch
