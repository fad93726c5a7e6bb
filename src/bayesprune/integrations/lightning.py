"""Pruner, samples and compaction in Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayesprune.common.lazy import missing
from bayesprune.integrations.attachment import Attaching, Attachment
from bayesprune.posterior import Samples
from bayesprune.samplers import CycleClock

_ABSENT: ImportError | None = None
try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:
    Callback, _ABSENT = object, missing(error, "LightningCallback")  # type: ignore[misc, assignment]


class LightningCallback(Attachment, Callback):  # type: ignore[misc]
    """Attaches a pruner and a sample store to the one optimizer of a LightningModule.

    The masks are in the optimizer's state of Lightning's checkpoint; ``trainer.fit(module, ckpt_path=...)`` goes on with
    them, bit for bit. For a cyclical step size let ``configure_optimizers`` return ``CyclicalLR`` with
    ``"interval": "step"``.

    Args:
        pruner: a function of (network, optimizer) that builds a pruner; Lightning builds the optimizer late. None prunes
            nothing.
        samples: where the samples go; None collects none.
        clock: says after which steps a sample is taken; ``trainer.estimated_stepping_batches`` is its ``total_steps``.
        compact: whether to compact the network at the end of the training, into ``compaction``.
        example_input: an input of the network, as `compact` takes it.
        network: the attribute of the LightningModule that holds the network; None is the module itself.

    Raises:
        ImportError: Lightning is missing.
        ValueError: a setting is missing that another one needs, the module has no such attribute or more than one optimizer;
            and as `Attachment.resume`.

    Example:
        >>> import bayesprune as bp
        >>> from bayesprune.integrations import LightningCallback
        >>> clock = bp.CycleClock(total_steps=1000, samples_per_cycle=4)
        >>> callback = LightningCallback(  # doctest: +SKIP
        ...     lambda net, opt: bp.ForwardPruning(net, opt, sparsity=0.8, clock=clock), bp.SampleStore("samples"), clock
        ... )
        >>> lightning.Trainer(max_steps=1000, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
    """

    _absent = _ABSENT

    def __init__(
        self,
        pruner: Attaching | None = None,
        samples: Samples | None = None,
        clock: CycleClock | None = None,
        *,
        compact: bool = False,
        example_input: Any = None,
        network: str | None = "model",
    ) -> None:
        super().__init__(pruner, samples, clock, compact=compact, example_input=example_input)
        self.network = network
        self._seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's: the optimizer is there, the checkpoint's state is not in it yet."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"the module has {len(trainer.optimizers)} optimizers; LightningCallback takes a single one"
            )
        self.attach(self._network(pl_module), trainer.optimizers[0])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's: everything is restored."""
        self._seen = trainer.global_step
        self.resume(self._seen)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Lightning's: after a batch, which need not be a step where gradients accumulate."""
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            network, optimizer = self._network(pl_module), trainer.optimizers[0]
            self.stepped(network, optimizer, self._seen - 1, main=trainer.is_global_zero)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's: after the last step."""
        self.end(self._network(pl_module))

    def _network(self, module: Any) -> nn.Module:
        if self.network is None:
            return module
        found = getattr(module, self.network, None)
        if not isinstance(found, nn.Module):
            children = [name for name, _ in module.named_children()]
            raise ValueError(
                f"network={self.network!r}: {type(module).__name__} has no such network; choose one of {children}, or None for the "
                "module itself"
            )
        return found
