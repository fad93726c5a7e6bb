"""When a run takes its samples, and how they are kept exactly sparse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bayesprune.posterior import preserved
from bayesprune.samplers import CycleClock
from bayesprune.sparsity import FeedbackPruning
from bayesprune.train.config import RunConfig
from bayesprune.train.methods import ramp_steps
from bayesprune.train.registry import method


class Collection:
    """The steps after which a run takes a sample: the clock's, once the sparsity is final, where the method collects at all."""

    def __init__(self, config: RunConfig, clock: CycleClock, collects: bool) -> None:
        self.clock, self.collects = clock, collects
        until = ramp_steps(config, clock.total_steps)[1]
        self.first = until if method(config.sampler.method).ramped else 0  # before it, samples were of a larger network
        self.planned = clock.num_samples if collects else 0
        self.taken = sum(self.due(step) for step in range(clock.total_steps)) if self.planned else 0
        if self.planned and not self.taken:
            raise ValueError(
                f"prune_until={config.pruning.prune_until} leaves none of the {self.planned} samples: the target sparsity is "
                "reached after the last of them. Lower prune_until."
            )

    def due(self, step: int) -> bool:
        """Return whether a sample is taken after a step."""
        return self.collects and step >= self.first and self.clock.collect(step)

    def __str__(self) -> str:
        """Say how many samples will be missing, "" for none."""
        if self.taken == self.planned:
            return ""
        return f"{self.taken} of {self.planned} samples: the others come before the target sparsity is reached"


@contextmanager
def held_sparse(model: nn.Module, pruner: Any) -> Iterator[None]:
    """Hold the sparse weights where a feedback pruner lets them move between two masks."""
    if not (isinstance(pruner, FeedbackPruning) and pruner.form == "masked" and pruner.every > 1):
        yield
        return
    with preserved(model):
        pruner.apply_()
        yield
