"""What a method adds to the one loop: its step size, its loss, what it samples, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune import baselines
from bayesprune.posterior import Samples
from bayesprune.samplers import CycleClock
from bayesprune.train.config import RunConfig
from bayesprune.train.task import Pairs, Regression, Task
from bayesprune.train.values import in_epochs, in_shares


class Procedure:
    """The plain procedure: the clock's step size, the task's loss, samples whenever the clock says so.

    Args:
        config: The run.
        model: The plain network.
        clock: The cycle clock.
        num_data: Number of training examples.
        fresh: A new network from a seed.
        task: What is learned.

    Example:
        >>> class HotStart(Procedure):
        ...     def lr(self, step):
        ...         return 2 * super().lr(step)
        >>> HotStart.collects
        True
    """

    collects = True

    def __init__(
        self, config: RunConfig, model: nn.Module, clock: CycleClock, num_data: int, fresh: Callable[[int], nn.Module],
        task: Task,
    ) -> None:  # fmt: skip
        self.config, self.clock, self.num_data, self.fresh = config, clock, num_data, fresh
        self.model, self.task = model, task

    def parameters(self) -> Iterable[Any]:
        """Return what the optimizer is built over: the network's own groups, each `lr_scale` times the step size, or all."""
        groups = getattr(self.model, "parameter_groups", None)
        return self.model.parameters() if groups is None else groups(self.config.sampler.weight_decay)

    def lr(self, step: int) -> float:
        """Return the step size at a step."""
        return self.clock.lr(step, self.config.sampler.lr)

    def begin_(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Prepare a step."""

    def targets(self, targets: Any) -> Any:
        """Return the targets that belong to the model's output for a batch."""
        return targets

    def loss(self, output: Any, targets: Any, step: int) -> Tensor:
        """Return the loss of a batch, `targets` as `self.targets` gave them."""
        return self.task.loss(output, targets)

    def end_(self, step: int) -> None:
        """Take in the weights after a step."""

    def info(self, step: int) -> dict[str, Any]:
        """Return what to remember of a sample taken after a step."""
        return {}

    def finish(self, samples: Samples, batches: Iterable[Any]) -> nn.Module:
        """Add the samples that are drawn at the end; return the network of the plain architecture to save."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside model and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""


class Cyclical(Procedure):
    """cSGLD and cSGHMC: noise in the last epochs of each cycle."""

    def begin_(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Switch the noise."""
        epochs = self.config.schedule.epochs
        noisy = in_epochs(self.config.baseline.noise_epochs, epochs) * (self.clock.total_steps // epochs)
        on = self.clock.injecting(step, round(noisy))
        for group in optimizer.param_groups:
            group["temperature"] = self.config.sampler.temperature if on else 0.0


class Rank1(Procedure):
    """Rank-1 BNN: it trains on the tiled batch with the annealed KL and ends as members × draws plain networks."""

    collects = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        baseline = self.config.baseline
        self.plain = self.model
        self.model: baselines.Rank1Network = baselines.to_rank1(
            self.plain, baseline.members, prior=baseline.prior, prior_std=baseline.prior_std,  # type: ignore[arg-type]
            random_sign=baseline.random_sign, seed=self.config.seed,
            output="mean" if isinstance(self.task, Regression) else "logits",
        )  # fmt: skip

    def parameters(self) -> Iterable[Any]:
        """Return the weights with decay and the factors without."""
        return self.model.parameter_groups(self.config.sampler.weight_decay)

    def lr(self, step: int) -> float:
        """Return the published steps of 0.2."""
        clock = self.clock
        return baselines.step_decay(step, clock.total_steps, self.config.sampler.lr, warmup_steps=clock.warmup_steps)

    def targets(self, targets: Any) -> Any:
        """Return the targets once a member."""
        return self.model.tile(targets)

    def loss(self, output: Any, targets: Any, step: int) -> Tensor:
        """Return the task's loss plus the annealed KL over N."""
        annealing = in_shares(self.config.baseline.annealing, self.config.schedule.epochs)
        scale = baselines.kl_scale(step, round(annealing * self.clock.total_steps))
        return super().loss(output, targets, step) + scale * self.model.kl() / self.num_data

    def finish(self, samples: Samples, batches: Iterable[Any]) -> nn.Module:
        """Store the members' draws; the single network is the first member at its means."""
        generator = torch.Generator().manual_seed(self.config.seed)
        step = self.clock.total_steps - 1
        self.model.collect(samples, self.plain, self.config.baseline.draws, generator, step=step, cycle=0)
        self.plain.load_state_dict(self.model.member_state(0, mean=True))
        return self.plain


class Swag(Procedure):
    """SWAG: iterates collected once an epoch at a constant step size, samples drawn at the end."""

    collects = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.swag = baselines.SWAG(self.config.baseline.rank)
        self.collect_from = in_shares(self.config.baseline.collect_from, self.config.schedule.epochs)

    def lr(self, step: int) -> float:
        """Return SWAG's step size, `lr_floor` its last share of the peak."""
        floor = self.config.schedule.lr_floor
        return baselines.swag_lr(step, self.clock.total_steps, self.config.sampler.lr, floor, self.collect_from)

    def end_(self, step: int) -> None:
        """Collect at the end of an epoch."""
        per_epoch = self.clock.total_steps // self.config.schedule.epochs
        begun = step >= math.floor(self.collect_from * self.clock.total_steps)
        if begun and (step + 1) % per_epoch == 0:
            self.swag.collect(self.model)

    def finish(self, samples: Samples, batches: Iterable[Any]) -> nn.Module:
        """Draw the samples; the single network is SWA, the mean."""
        generator, step = torch.Generator().manual_seed(self.config.seed), self.clock.total_steps - 1
        draws, batches = self.config.baseline.draws, Pairs(self.task, batches)
        self.swag.draw(samples, self.model, draws, batches, generator=generator, step=step, cycle=0)
        self.model.load_state_dict(self.swag.sample(scale=0.0))
        return baselines.refresh_batch_norm_(self.model, batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments so far."""
        return self.swag.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the moments."""
        self.swag.load_state_dict(state)


class Ensemble(Procedure):
    """Deep ensemble: every cycle trains a network drawn anew from a seed of its own, and ends in a sample."""

    def begin_(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """At the start of a cycle, start again: new weights, no momentum."""
        if step == 0 or (step == self.clock.start(self.clock.cycle(step)) and self.clock.cycle(step) > 0):
            self.model.load_state_dict(self.fresh(self._seed(step)).state_dict())
            optimizer.state.clear()

    def info(self, step: int) -> dict[str, Any]:
        """Return the member's seed, as `baselines.DeepEnsemble` wants it."""
        return {"seed": self._seed(step)}

    def _seed(self, step: int) -> int:
        cycle = max(0, self.clock.cycle(step))
        return baselines.independent_seeds(self.config.seed, self.clock.cycles)[cycle]
