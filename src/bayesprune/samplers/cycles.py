"""The cycle clock: which cycle, how far, which step size, and whether to collect a sample now — in integer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class CycleClock:
    """Cosine cycles over a run of `total_steps`, with samples at the coldest steps of each cycle.

    Steps are numbered 0 … total_steps − 1. After `warmup_steps` of linear ramp the rest is cut into `cycles` parts
    whose lengths differ by at most one; within a cycle of length L starting at step a, lr(t) = peak·(1 + cos(π(t −
    a)/L))/2.

    Args:
        total_steps: Steps of the whole run.
        cycles: M ≥ 1.
        samples_per_cycle: S samples a cycle, taken after its last step and every `sample_every` steps before it.
        sample_every: Distance between the samples of a cycle, in steps (usually one epoch).
        warmup_steps: Steps of a linear ramp before the first cycle; no samples there.
        floor: Smallest share of the peak lr, in [0, 1): a cycle ends at floor·peak. 0 is the paper's.

    Raises:
        ValueError: A cycle is too short for its samples, or a count is out of range.

    Example:
        >>> clock = CycleClock(total_steps=10, cycles=2, samples_per_cycle=2, sample_every=1)
        >>> [t for t in range(10) if clock.collect(t)]
        [3, 4, 8, 9]
        >>> [round(clock.lr(t, 1.0), 3) for t in (0, 4, 5)]
        [1.0, 0.095, 1.0]

    Reference:
        Equal to `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`, stepped per iteration; Zhang et al. (2020);
        section 4 of the paper.
    """

    total_steps: int
    cycles: int = 1
    samples_per_cycle: int = 0
    sample_every: int = 1
    warmup_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check the counts."""
        for name, least in (
            ("total_steps", 1),
            ("cycles", 1),
            ("samples_per_cycle", 0),
            ("sample_every", 1),
            ("warmup_steps", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor={self.floor!r} must lie in [0, 1).")
        shortest = (self.total_steps - self.warmup_steps) // self.cycles
        if shortest < 1:
            raise ValueError(
                f"total_steps={self.total_steps} leave no step for each of cycles={self.cycles} after warmup_steps={self.warmup_steps}; "
                "train longer or use fewer cycles."
            )
        if self.samples_per_cycle and (self.samples_per_cycle - 1) * self.sample_every >= shortest:
            raise ValueError(
                f"samples_per_cycle={self.samples_per_cycle} at sample_every={self.sample_every} do not fit in a cycle of "
                f"{shortest} steps; "
                "take fewer samples, closer together, or use fewer cycles."
            )

    def start(self, cycle: int) -> int:
        """Return the first step of a cycle; `start(cycles)` is `total_steps`."""
        return self.warmup_steps + (self.total_steps - self.warmup_steps) * cycle // self.cycles

    def cycle(self, step: int) -> int:
        """Return the number of the cycle that holds `step`, −1 during warm-up."""
        if step < self.warmup_steps:
            return -1
        length = self.total_steps - self.warmup_steps
        return min(self.cycles - 1, ((step - self.warmup_steps + 1) * self.cycles - 1) // length)

    def fraction(self, step: int) -> float:
        """Return how far `step` is into its cycle (or the warm-up), in [0, 1)."""
        cycle = self.cycle(step)
        if cycle < 0:
            return step / self.warmup_steps
        begin, end = self.start(cycle), self.start(cycle + 1)
        return min((step - begin) / (end - begin), 1.0)

    def lr(self, step: int, peak: float = 1.0) -> float:
        """Return the step size at `step`."""
        if step < self.warmup_steps:
            return peak * (step + 1) / (self.warmup_steps + 1)
        return peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * self.fraction(step))))

    def collect(self, step: int) -> bool:
        """Return whether a sample is to be taken after `step`."""
        cycle = self.cycle(step)
        if cycle < 0 or step >= self.total_steps:
            return False
        before_end = self.start(cycle + 1) - 1 - step
        return before_end % self.sample_every == 0 and before_end // self.sample_every < self.samples_per_cycle

    @property
    def num_samples(self) -> int:
        """Number of samples of the whole run."""
        return self.cycles * self.samples_per_cycle


class CyclicalLR(LRScheduler):
    """Sets every group's lr from a `CycleClock`; step it once after each `optimizer.step()`.

    Args:
        optimizer: Any torch optimizer; each group's initial lr is its peak.
        clock: The clock.
        last_epoch: Index of the last step made, −1 at the start (torch's name).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
        >>> scheduler = CyclicalLR(optimizer, CycleClock(total_steps=4, cycles=2))
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 3)); optimizer.step(); scheduler.step()
        >>> rates
        [1.0, 0.5, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, clock: CycleClock, last_epoch: int = -1) -> None:
        self.clock = clock
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return each group's step size at the current step."""
        step = min(self.last_epoch, self.clock.total_steps - 1)
        return [self.clock.lr(step, float(base)) for base in self.base_lrs]

    def state_dict(self) -> dict[str, object]:
        """Return the position; the clock itself is configuration."""
        return {key: value for key, value in super().state_dict().items() if key != "clock"}
