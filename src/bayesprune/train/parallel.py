"""The processes of a data-parallel run: one where it was started plainly, several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

_AGREE_EVERY = 20  # steps; on a GPU, agreeing waits for the device


def launched() -> tuple[int, int, int]:
    """Return rank, processes and processes on this machine, as torchrun set them; (0, 1, 1) without it.

    Example:
        >>> launched()
        (0, 1, 1)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1, 1
    rank, processes, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return rank, processes, here


class Ranks:
    r"""What the processes of a run must agree on.

    Every process takes its part of each batch and all hold the same weights: gradients are averaged, and the sampler's
    noise comes from a counter and the run's seed, so that each draws the same. One step is then the single process's

        w ← F(w, mean of the gradients over the whole batch, ε(seed, step))

    but for the order of sums, and for BatchNorm, which normalises each process's part by itself (as it always does in
    data-parallel training); its running statistics are averaged after every step.

    Args:
        device: Where this process computes.
        batch_size: Images in a batch, over all processes.

    Raises:
        ValueError: A batch size that the number of processes does not divide.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.rank, self.processes, _ = launched()
        self.device = device
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
        """Refuse to go on with weights that differ between the processes.

        Raises:
            RuntimeError: They differ.
        """
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

    def from_main(self, value: Any) -> Any:
        """Return what the main process passes; the others wait for it."""
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
