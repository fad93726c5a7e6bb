"""When cSGLD and cSGHMC inject noise: the last steps of each cycle."""

from __future__ import annotations

from bayesprune.baselines.sgld import CyclicalSGHMC
from bayesprune.samplers import CycleClock
from bayesprune.samplers.validation import check_number


class CyclicalNoise:
    """Switches `inject` on for the last `window` steps of each cycle; step it once after each `optimizer.step()`.

    Args:
        optimizer: A `CyclicalSGHMC` or `CyclicalSGLD`.
        clock: The clock that drives the step size too.
        window: Steps at the end of a cycle that inject noise; csgmcmc has 5 of 50 epochs. At least the cycle's length
            injects always.

    Raises:
        ValueError: `window` is negative.

    Example:
        >>> import torch
        >>> from bayesprune.baselines.sgld import CyclicalSGLD
        >>> optimizer = CyclicalSGLD([torch.nn.Parameter(torch.ones(1))], lr=0.5, num_data=10, temperature=1.0)
        >>> noise = CyclicalNoise(optimizer, CycleClock(total_steps=6, cycles=2), window=1)
        >>> switched = []
        >>> for _ in range(6):
        ...     switched.append(optimizer.param_groups[0]["inject"]); optimizer.step(); noise.step()
        >>> switched
        [False, False, True, False, False, True]

    Reference:
        Zhang et al. (2020), section 3: exploration without noise, then sampling.
    """

    def __init__(self, optimizer: CyclicalSGHMC, clock: CycleClock, window: int) -> None:
        check_number("window", window, minimum=0)
        self.optimizer, self.clock, self.window, self.last_step = optimizer, clock, int(window), 0
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
        for group in self.optimizer.param_groups:
            group["inject"] = injects(self.clock, self.last_step, self.window)


def injects(clock: CycleClock, step: int, window: int) -> bool:
    """Return whether `step` is among the last `window` steps of its cycle (never in the warm-up).

    Example:
        >>> [injects(CycleClock(total_steps=4), step, window=2) for step in range(4)]
        [False, False, True, True]
    """
    cycle = clock.cycle(step)
    return cycle >= 0 and step < clock.total_steps and clock.start(cycle + 1) - step <= window
