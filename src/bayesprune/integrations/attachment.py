"""What pruner, samples and compaction do at the four moments of a trainer's run: attach, resume, step, end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bayesprune.compaction import Compaction
from bayesprune.compaction import compact as compacted
from bayesprune.graph.inputs import Inputs
from bayesprune.posterior import MemorySamples, Samples
from bayesprune.samplers import CycleClock
from bayesprune.samplers.admission import unwrapped
from bayesprune.sparsity.masks import MaskHolder

Attaching = Callable[[nn.Module, Optimizer], MaskHolder]


class Attachment:
    """Attaches a pruner and a sample store to the run of a trainer; the callbacks call it, and so may a trainer of your own.

    The masks are saved and restored with the optimizer's state, so a checkpoint of the trainer holds them; a `SampleStore`
    is its own folder, and what it holds from after the checkpoint is dropped when the run resumes.

    Args:
        pruner: a pruner that is attached already, or a function of (network, optimizer) that builds one once both are
            there; None prunes nothing.
        samples: where the samples go; None collects none.
        clock: says after which of the optimizer's steps a sample is taken, by its numbers 0, 1, ...
        compact: whether to compact the network at the end of the training, into ``compaction``.
        example_input: an input of the network, as `compact` takes it.

    Attributes:
        pruner: the pruner once it is attached, None before.
        compaction: what `compact` returned, None before the end.

    Raises:
        ValueError: a setting is missing that another one needs.

    Example:
        >>> import torch
        >>> import bayesprune as bp
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
        >>> optimizer = bp.CVAdam(model.parameters(), lr=1e-2, num_data=16)
        >>> clock = bp.CycleClock(total_steps=6, samples_per_cycle=2, sample_every=1)
        >>> run = Attachment(
        ...     lambda net, opt: bp.ForwardPruning(net, opt, sparsity=0.5, clock=clock, every=1, round_to=1, example_input=x),
        ...     bp.MemorySamples(), clock, compact=True, example_input=x,
        ... )
        >>> run.attach(model, optimizer)
        >>> run.resume(0)
        >>> for step in range(6):
        ...     optimizer.zero_grad(); model(x).square().mean().backward(); _ = optimizer.step()
        ...     run.stepped(model, optimizer, step)
        >>> run.end(model)
        >>> [info["step"] for info in run.samples.infos], run.compaction.model[0].out_features
        ([4, 5], 4)
    """

    _absent: ImportError | None = None  # of a callback whose trainer is not installed

    def __init__(
        self,
        pruner: MaskHolder | Attaching | None = None,
        samples: Samples | None = None,
        clock: CycleClock | None = None,
        *,
        compact: bool = False,
        example_input: Any = None,
    ) -> None:
        if self._absent is not None:
            raise self._absent
        if (samples is None) != (clock is None):
            raise ValueError(
                f"samples={samples!r} and clock={clock!r} belong together: the clock says when a sample is taken; give both or neither"
            )
        if compact and (pruner is None or example_input is None):
            raise ValueError("compact=True needs a pruner and an example_input; give both")
        self.pruner: MaskHolder | None = pruner if isinstance(pruner, MaskHolder) else None
        self._attaching: Attaching | None = None if isinstance(pruner, MaskHolder) else pruner
        self.samples, self.clock = samples, clock
        self.compact, self.example_input = compact, example_input
        self.compaction: Compaction | None = None
        self._done = 0

    def attach(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Build the pruner, before a checkpoint is read into the optimizer.

        Args:
            network: the network that is trained.
            optimizer: its optimizer.
        """
        if self._attaching is not None:
            self.pruner = self._attaching(network, unwrapped(optimizer))

    def resume(self, done: int) -> None:
        """Check what a run starts with, and drop the samples that were taken after its checkpoint.

        Args:
            done: the optimizer's steps that were made before; 0 of a new run.

        Raises:
            ValueError: the masks of the checkpoint were not read, samples of it are missing, or a new run was given a store
                with samples in it.
        """
        if done and self.pruner is not None and not self.pruner.step_count:
            raise ValueError(
                f"the run goes on at step {done}, but the pruner was attached after the optimizer's state was read, and its masks "
                "are lost; build the optimizer yourself and hand it to the trainer, so that the pruner is attached before"
            )
        if self.samples is None or self.clock is None:
            return
        steps = [info.get("step") for info in self.samples.infos]
        if not done and steps:
            raise ValueError(
                f"samples={self.samples!r}: a new run begins with an empty store; give another folder, or resume from a checkpoint"
            )
        wanted = [step for step in range(done) if self.clock.collect(step)]
        if steps[: len(wanted)] != wanted:
            raise ValueError(
                f"samples={self.samples!r}: the checkpoint at step {done} comes after the samples of steps {wanted}, the store holds "
                f"those of steps {steps}; give the SampleStore of the interrupted run"
            )
        self.samples.truncate(len(wanted))

    def stepped(self, network: nn.Module, optimizer: Optimizer, step: int, *, main: bool = True) -> None:
        """Take a sample, if the clock says so.

        Args:
            network: the network that is trained.
            optimizer: its optimizer; of a `Sampler` the midpoint of the last move is taken.
            step: the number of the step that was just made, from 0 on.
            main: whether this process keeps the samples; the others only take part in gathering sharded weights.
        """
        self._done = step + 1
        if self.samples is not None and self.clock is not None and self.clock.collect(step):
            kept = self.samples if main else MemorySamples()
            kept.collect(network, optimizer, step=step, cycle=self.clock.cycle(step))

    def end(self, network: nn.Module) -> None:
        """Bring the masks to their target and compact the network, if that was asked for.

        Args:
            network: the trained network; it is left at its sparse weights.

        Raises:
            CompactionError: as `compact`.

        Warns:
            UserWarning: the clock would have taken samples after the last step.
        """
        if (clock := self.clock) and (missed := sum(map(clock.collect, range(self._done, clock.total_steps)))):
            warnings.warn(
                f"the run ended after {self._done} of the clock's total_steps={clock.total_steps} steps: {missed} of "
                f"{clock.num_samples} samples were not taken; give the clock the steps that the trainer makes",
                stacklevel=2,
            )
        if not self.compact:
            return
        assert self.pruner is not None
        self.pruner.finish_()
        device = next(network.parameters()).device
        example = Inputs.of(network, self.example_input).map(lambda tensor: tensor.to(device))
        self.compaction = compacted(network, self.pruner, example_input=example)
