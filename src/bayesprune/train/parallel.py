"""The processes of a data-parallel run: one where it was started plainly, several under torchrun."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

START = 600.0
"""Seconds that the processes wait for each other before the first step: they import, read data and compile at their own pace."""
T = TypeVar("T")
_BEAT, _DONE = "bayesprune/beat", "bayesprune/done"
_AGREE_EVERY = 20  # steps; on a GPU, agreeing waits for the device


def launched() -> tuple[int, int, int]:
    """Return rank, processes and processes on this machine, as torchrun set them; (0, 1, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1, 1
    rank, processes, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return rank, processes, here


class Ranks:
    """What the processes of a run must agree on."""

    def __init__(self, device: torch.device, batch_size: int, timeout: float = 12.0) -> None:
        self.rank, self.processes, _ = launched()
        self.device, self.timeout = device, timeout
        self._hurried, self._turn = False, 0
        if batch_size % self.processes:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of the {self.processes} processes that share it."
            )
        self._model: nn.Module | None = None
        self._statistics: list[Tensor] = []

    def watch(self, model: nn.Module) -> None:
        """Take in the network whose weights and statistics are to be the same."""
        self._model = model
        self._statistics = [
            buffer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and self.processes > 1
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number of processes, for a loader."""
        return self.rank, self.processes

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.processes == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def mean(self, values: Sequence[float], weight: float) -> list[float]:
        """Return the weighted means over the processes."""
        if self.processes == 1:
            return list(values)
        total = torch.tensor([*(value * weight for value in values), weight], dtype=torch.float64, device=self.device)
        *sums, weight = self.sum(total).tolist()
        return [value / weight for value in sums]

    def any(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether a process has it up, the same in all; on GPUs, False but every few steps."""
        if self.processes == 1:
            return flags
        if self.device.type != "cpu" and step % _AGREE_EVERY:
            return tuple(False for _ in flags)
        up = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(up)
        return tuple(bool(flag) for flag in up.tolist())

    @torch.no_grad()
    def average_statistics_(self) -> None:
        """Give every process the mean of BatchNorm's running statistics."""
        if not self._statistics:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in self._statistics])
        distributed.all_reduce(flat)
        flat /= self.processes
        for buffer, mean in zip(self._statistics, flat.split([buffer.numel() for buffer in self._statistics])):
            buffer.copy_(mean.view_as(buffer))

    @torch.no_grad()
    def check_same(self) -> None:
        """Refuse to go on with weights that differ between the processes."""
        if self.processes == 1 or self._model is None:
            return
        sums = torch.stack([p.detach().double().sum() for p in self._model.parameters()])
        low, high = sums.clone(), sums.clone()
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
        if not torch.equal(low.nan_to_num(), high.nan_to_num()):  # what is not finite is told elsewhere
            raise RuntimeError(
                "the weights differ between the processes; go back to the last checkpoint with --resume."
            )

    def hurry_(self) -> None:
        """From the first step on, wait `timeout` for the others and no longer."""
        if self.processes > 1 and not self._hurried:
            distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), None)
            self._hurried = True

    def in_main(self, work: Callable[[], T]) -> T | None:
        """Return what work of the main process alone returns, None in the others: they wait for as long as it lives."""
        if self.processes == 1:
            return work()
        self._turn += 1
        if self.main:
            with self._beating():
                return work()
        self._await_main()
        return None

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """In the main process, a thread that says that the process lives."""
        store, done = distributed.distributed_c10d._get_default_store(), Event()

        def beat() -> None:
            while not done.is_set():
                store.add(_BEAT, 1)
                done.wait(self.timeout / 5)

        heart = Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join()
            store.set(f"{_DONE}/{self._turn}", "1")

    def _await_main(self) -> None:
        """Wait until the main process has done its work; RuntimeError once it shows no life for `timeout` seconds."""
        store, seen, since = distributed.distributed_c10d._get_default_store(), -1, time.monotonic()
        pause = 0.001  # most such work is short
        while not store.check([f"{_DONE}/{self._turn}"]):
            count = store.add(_BEAT, 0)
            if count != seen:
                seen, since = count, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                raise RuntimeError(
                    f"process 0 has shown no life for {self.timeout:g} s while it wrote or evaluated; go on with --resume."
                )
            time.sleep(pause)
            pause = min(0.2, 2 * pause)

    def from_main(self, value: Any) -> Any:
        """Return what the main process passes."""
        if self.processes == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, 0, device=self.device)
        return held[0]

    def random_state(self) -> dict[str, Tensor | None]:
        """Return the state of torch's generators, of all processes."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "cpu_rng": self._gather(torch.get_rng_state()),
            "cuda_rng": self._gather(cuda) if cuda is not None else None,
        }

    def set_random_state(self, seed: int, state: dict[str, Any] | None = None) -> None:
        """Seed torch's generators, each process's apart; then restore what `random_state` returned, where it fits."""
        torch.manual_seed(seed + (self.rank << 20))  # dropout draws from torch's generator
        cpu, cuda = (self._own((state or {}).get(name)) for name in ("cpu_rng", "cuda_rng"))
        if cpu is not None:
            torch.set_rng_state(cpu)
        if cuda is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.device)

    def _gather(self, state: Tensor) -> Tensor:
        """Return every process's tensor (processes, …); alone, the tensor itself."""
        if self.processes == 1:
            return state
        held = state.to(self.device)
        parts = [torch.empty_like(held) for _ in range(self.processes)]
        distributed.all_gather(parts, held)
        return torch.stack(parts).cpu()

    def _own(self, gathered: Tensor | None) -> Tensor | None:
        """Return this process's tensor of what `_gather` returned; None if it came from another number of processes."""
        if gathered is None or gathered.dim() == 1:
            return gathered if self.main else None
        return gathered[self.rank].clone() if len(gathered) == self.processes else None
