"""Pruner, samples and compaction in the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from bayesprune.common.lazy import missing
from bayesprune.integrations.attachment import Attachment

_ABSENT: ImportError | None = None
try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    TrainerCallback, _ABSENT = object, missing(error, "TransformersCallback")  # type: ignore[misc, assignment]


class TransformersCallback(Attachment, TrainerCallback):  # type: ignore[misc]
    """Attaches a pruner and a sample store to the optimizer of a Hugging Face Trainer.

    Give the optimizer to the Trainer, ``optimizers=(optimizer, None)``: the pruner is then attached before a checkpoint is
    read, and ``trainer.train(resume_from_checkpoint=...)`` goes on with the masks, bit for bit. With an optimizer that the
    Trainer makes itself, a run can be pruned but not resumed; it says so.

    Args:
        pruner: a pruner that is attached already, or a function of (model, optimizer) that builds one; None prunes nothing.
        samples: where the samples go; None collects none.
        clock: says after which steps a sample is taken.
        compact: whether to compact the model at the end of the training, into ``compaction``.
        example_input: an input of the model, as `compact` takes it: mostly a dict.

    Raises:
        ImportError: transformers is missing.
        ValueError: a setting is missing that another one needs; and as `Attachment.resume`.

    Example:
        >>> import bayesprune as bp
        >>> from bayesprune.integrations import TransformersCallback
        >>> clock = bp.CycleClock(total_steps=1000, samples_per_cycle=4)
        >>> callback = TransformersCallback(  # doctest: +SKIP
        ...     lambda model, opt: bp.ForwardPruning(model, opt, sparsity=0.5, clock=clock, example_input=batch),
        ...     bp.SampleStore("samples"), clock, compact=True, example_input=batch,
        ... )
        >>> transformers.Trainer(model, optimizers=(optimizer, None), callbacks=[callback]).train()  # doctest: +SKIP
    """

    _absent = _ABSENT

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """The Trainer's: an optimizer that was given is there, the checkpoint's state is not in it yet."""
        if optimizer is not None:
            self.attach(model, optimizer)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """The Trainer's: everything is restored."""
        if self.pruner is None:
            self.attach(model, optimizer)
        self.resume(state.global_step)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """The Trainer's: after a step of the optimizer."""
        self.stepped(model, optimizer, state.global_step - 1, main=state.is_world_process_zero)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The Trainer's: after the last step."""
        self.end(model)
