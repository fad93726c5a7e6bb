"""The cycle clock: which cycle, how far, which step size, learn the preconditioner, collect a sample — in integer steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bayesprune.common.checks import check_number


@dataclass(frozen=True)
class CycleClock:
    """Cosine cycles over a run of `total_steps`, with samples at the coldest steps of each cycle.

    Steps are numbered 0 … total_steps − 1. After `warmup_steps` of linear ramp the rest is cut into `cycles` parts
    whose lengths differ by at most one; within a cycle of length L starting at step a, lr(t) = peak·(1 + cos(π(t −
    a)/L))/2. A long `first_steps` and a low `restart` make it one descent and short cycles around its end.

    Args:
        total_steps: Steps of the whole run.
        cycles: M ≥ 1.
        samples_per_cycle: S samples a cycle, taken after its last step and every `sample_every` steps before it.
        sample_every: Distance between the samples of a cycle, in steps; None spreads them over the last half of the
            shortest cycle.
        warmup_steps: Steps of a linear ramp before the first cycle; no samples there.
        floor: Smallest share of the peak lr, in [0, 1): a cycle ends at floor·peak. 0 is the paper's.
        first_steps: Length of the first cycle, the later ones share what is left; None makes all equal.
        restart: Share of the peak lr at which the later cycles begin, in (floor, 1].

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
        section 4 of the paper. Short later cycles: Garipov et al. (2018), fast geometric ensembling.
    """

    total_steps: int
    cycles: int = 1
    samples_per_cycle: int = 0
    sample_every: int | None = None
    warmup_steps: int = 0
    floor: float = 0.0
    first_steps: int | None = None
    restart: float = 1.0

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
            if (name, value) != ("sample_every", None) and (not isinstance(value, (int, np.integer)) or value < least):
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor={self.floor!r} must lie in [0, 1).")
        if not self.floor < self.restart <= 1:
            raise ValueError(f"restart={self.restart!r} must lie above floor={self.floor!r} and be at most 1.")
        if self.first_steps is not None:
            check_number("first_steps", self.first_steps, minimum=1)
        shortest = min(self.start(cycle + 1) - self.start(cycle) for cycle in range(self.cycles))
        if shortest < 1:
            raise ValueError(
                f"total_steps={self.total_steps} leave no step for each of cycles={self.cycles} after warmup_steps={self.warmup_steps}"
                f"{'' if self.first_steps is None else f' and first_steps={self.first_steps}'}; train longer or use fewer cycles."
            )
        if self.sample_every is None:
            object.__setattr__(self, "sample_every", max(1, shortest // (2 * max(1, self.samples_per_cycle))))
        if self.samples_per_cycle and (self.samples_per_cycle - 1) * self.spacing >= shortest:
            raise ValueError(
                f"samples_per_cycle={self.samples_per_cycle} at sample_every={self.spacing} do not fit in a cycle of "
                f"{shortest} steps; "
                "take fewer samples, closer together, or use fewer cycles."
            )

    def start(self, cycle: int) -> int:
        """Return the first step of a cycle; `start(cycles)` is `total_steps`."""
        begin, count = self.warmup_steps, self.cycles
        if self.first_steps is not None and count > 1 and cycle > 0:
            begin, count, cycle = begin + self.first_steps, count - 1, cycle - 1
        return begin + (self.total_steps - begin) * cycle // count

    def cycle(self, step: int) -> int:
        """Return the number of the cycle that holds `step`, −1 during warm-up."""
        return bisect_right(range(self.cycles), step, key=self.start) - 1

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
        top = 1.0 if self.cycle(step) == 0 else self.restart
        return peak * (self.floor + (top - self.floor) * 0.5 * (1 + math.cos(math.pi * self.fraction(step))))

    def collect(self, step: int) -> bool:
        """Return whether a sample is to be taken after `step`."""
        cycle = self.cycle(step)
        if cycle < 0 or step >= self.total_steps:
            return False
        before_end = self.start(cycle + 1) - 1 - step
        return before_end % self.spacing == 0 and before_end // self.spacing < self.samples_per_cycle

    def adapting(self, step: int) -> bool:
        """Return whether a preconditioner learns at `step`: in the warm-up and in each cycle's first half, before its samples.

        Example:
            >>> clock = CycleClock(total_steps=8, cycles=2, samples_per_cycle=1)
            >>> [clock.adapting(t) for t in range(8)]
            [True, True, False, False, True, True, False, False]
        """
        cycle = self.cycle(step)
        if cycle < 0:
            return True
        begin, end = self.start(cycle), self.start(cycle + 1)
        first_sample = end - 1 - (self.samples_per_cycle - 1) * self.spacing
        return step < min(first_sample, begin + (end - begin + 1) // 2)

    def injecting(self, step: int, window: int) -> bool:
        """Return whether `step` is among the last `window` steps of its cycle, never in the warm-up.

        Example:
            >>> [CycleClock(total_steps=4).injecting(step, window=2) for step in range(4)]
            [False, False, True, True]
        """
        cycle = self.cycle(step)
        return cycle >= 0 and step < self.total_steps and self.start(cycle + 1) - step <= window

    @property
    def spacing(self) -> int:
        """Steps between two samples of a cycle."""
        assert self.sample_every is not None  # set by __post_init__
        return self.sample_every

    @property
    def num_samples(self) -> int:
        """Number of samples of the whole run."""
        return self.cycles * self.samples_per_cycle


class CyclicalLR(LRScheduler):
    """Sets every group's lr from a `CycleClock`; step it once after each `optimizer.step()`.

    Of a `Sampler` it sets `adapt` too: the preconditioner learns while `clock.adapting`, and stands still for the samples.

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
        set_adapt(self.optimizer, self.clock.adapting(step))
        return [self.clock.lr(step, float(base)) for base in self.base_lrs]

    def state_dict(self) -> dict[str, object]:
        """Return the position; the clock itself is configuration."""
        return {key: value for key, value in super().state_dict().items() if key != "clock"}


def set_adapt(optimizer: Optimizer, adapt: bool) -> None:
    """Let "rms" preconditioners of a sampler learn, or stand still; all else, the paper's rule included, is left alone.

    Example:
        >>> import torch
        >>> set_adapt(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0), False)
    """
    for group in optimizer.param_groups:
        if group.get("preconditioner") == "rms":
            group["adapt"] = adapt


class CyclicalNoise:
    """Injects noise in the last `window` steps of each cycle only, as cSGLD and cSGHMC do; step it after `optimizer.step()`.

    Outside the window the groups' temperature is 0.

    Args:
        optimizer: A sampler; each group's initial temperature is that of the window.
        clock: The clock that drives the step size too.
        window: Steps at the end of a cycle that inject noise; csgmcmc has 5 of 50 epochs. At least the cycle's length
            injects always.

    Raises:
        ValueError: `window` is negative.

    Example:
        >>> import torch
        >>> from bayesprune.samplers import SGLD
        >>> optimizer = SGLD([torch.nn.Parameter(torch.ones(1))], lr=0.5, num_data=10, temperature=1.0)
        >>> noise = CyclicalNoise(optimizer, CycleClock(total_steps=6, cycles=2), window=1)
        >>> temperatures = []
        >>> for _ in range(6):
        ...     temperatures.append(optimizer.param_groups[0]["temperature"]); optimizer.step(); noise.step()
        >>> temperatures
        [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]

    Reference:
        Zhang et al. (2020), section 3: exploration without noise, then sampling.
    """

    def __init__(self, optimizer: Optimizer, clock: CycleClock, window: int) -> None:
        check_number("window", window, minimum=0)
        self.optimizer, self.clock, self.window, self.last_step = optimizer, clock, int(window), 0
        for group in optimizer.param_groups:
            group.setdefault("initial_temperature", group["temperature"])
        self._set()

    def step(self) -> None:
        """Go to the next step."""
        self.last_step += 1
        self._set()

    def state_dict(self) -> dict[str, int]:
        """Return the position; clock and window are configuration."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go to a saved position."""
        self.last_step = int(state_dict["last_step"])
        self._set()

    def _set(self) -> None:
        on = self.clock.injecting(self.last_step, self.window)
        for group in self.optimizer.param_groups:
            group["temperature"] = group["initial_temperature"] if on else 0.0
