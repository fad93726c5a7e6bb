"""Do the members fit the training data? A chain that never got near the mode passes every other check in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.common.modes import evaluating, preserved
from bayesprune.posterior.predict import call, split_batch
from bayesprune.posterior.samples import Samples

Loss = Callable[[Any, Tensor], Tensor]
_UNFIT = 0.25
_UNFIT_ALONE = 0.5  # without a reference: augmentation and label smoothing keep a training loss from 0


@dataclass(frozen=True)
class Fit:
    """Mean training losses: of the members, of a T = 0 reference grown from one of them, of the best constant prediction.

    Example:
        >>> fit = Fit(members=0.3, reference=0.1, constant=2.3)
        >>> fit.members - fit.reference < fit.constant
        True
    """

    members: float
    reference: float | None = None
    constant: float | None = None

    @property
    def gap(self) -> float | None:
        """How far the members lie from the reference (without one: from loss 0), 1 being the constant; None if unknown."""
        low = self.reference or 0.0
        if self.constant is None or self.constant <= low:
            return None
        return (self.members - low) / (self.constant - low)

    @property
    def warning(self) -> str | None:
        """What to say where the members do not fit, else None."""
        if self.gap is None or self.gap <= (_UNFIT_ALONE if self.reference is None else _UNFIT):
            return None
        low = f"{self.reference:.3g} is within reach at T = 0" if self.reference is not None else "a perfect fit has 0"
        return (
            f"members do not fit: their training loss is {self.members:.3g}, a constant prediction has {self.constant:.3g}, {low}. "
            "The chain is unfit, or T is too high for this data (or lr, which heats it): train longer, or lower lr or temperature"
        )

    def as_dict(self) -> dict[str, float | None]:
        """The three losses by name."""
        return asdict(self)


def fit_check(
    model: nn.Module,
    samples: Samples,
    batches: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    epochs: int = 5,
    lr: float = 1e-3,
    members: int = 3,
) -> Fit:
    """Compare the members' training loss with what the same weights reach when the temperature is switched off.

    The reference starts at the last member and takes `epochs` passes of Adam, its step size falling to 0. At T = 1 a
    fitted chain of d well-determined weights lies about d/(2N) above the mode, with N training examples.

    Args:
        model: The architecture; its weights, buffers and mode are left as they are.
        samples: At least one member.
        batches: Training batches, (inputs, labels) or mappings with "labels" as `predict` takes them, iterated several times.
        loss: Mean loss of (outputs, labels).
        epochs: Passes of the reference.
        lr: Its first step size.
        members: How many of the last members are evaluated.

    Raises:
        ValueError: There is no sample, or no batch.

    Example:
        >>> from bayesprune.posterior import MemorySamples
        >>> model, samples = nn.Linear(1, 2), MemorySamples()
        >>> _ = samples.collect(model)
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> fit = fit_check(model, samples, [(x, (x[:, 0] > 0).long())] * 40, lr=0.1)
        >>> fit.reference < 0.3 < fit.members
        True

    Reference:
        Equipartition: E[N·(L − L_min)] = d·T/2 for a quadratic loss.
    """
    if not len(samples):
        raise ValueError("samples is empty; collect at least one member")
    batches = _Pairs(batches)
    with preserved(model):
        losses = []
        for index in range(max(0, len(samples) - members), len(samples)):
            samples.load_(index, model)
            losses.append(_mean_loss(model, batches, loss))
        return Fit(
            sum(losses) / len(losses), _quenched(model, batches, loss, epochs, lr), _constant(model, batches, loss)
        )


@dataclass(frozen=True)
class _Pairs:
    """Batches as pairs of inputs and labels, however often they are gone through."""

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self.batches:
            inputs, labels = split_batch(batch)
            if labels is None:
                raise ValueError("batches: one has no labels; give (inputs, labels), or a mapping that holds 'labels'")
            yield inputs, labels


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: Iterable[tuple[Any, Tensor]], loss: Loss) -> float:
    total, seen = 0.0, 0
    with evaluating(model):
        for inputs, labels in batches:
            total, seen = total + float(loss(call(model, inputs), labels)) * len(labels), seen + len(labels)
    if not seen:
        raise ValueError(
            "batches is empty; give an iterable that can be gone through several times, such as a DataLoader"
        )
    return total / seen


def _quenched(model: nn.Module, batches: Iterable[tuple[Any, Tensor]], loss: Loss, epochs: int, lr: float) -> float:
    """The training loss of a copy after `epochs` passes at T = 0."""
    trained = copy.deepcopy(model).train()
    steps = epochs * sum(1 for _ in batches)
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    with torch.enable_grad():
        for inputs, labels in (batch for _ in range(epochs) for batch in batches):
            optimizer.zero_grad()
            loss(call(trained, inputs), labels).backward()
            optimizer.step()
            scheduler.step()
    return _mean_loss(trained, batches, loss)


@torch.no_grad()
def _constant(model: nn.Module, batches: Iterable[tuple[Any, Tensor]], loss: Loss) -> float | None:
    """The loss of the best constant: the log frequencies of class labels, the mean of real ones."""
    labels = torch.cat([labels for _, labels in batches])
    if labels.is_floating_point():
        constant = labels.mean(0, keepdim=True).expand_as(labels)
    elif labels.dim() == 1:
        with evaluating(model):
            classes = call(model, next(iter(batches))[0]).shape[-1]
        counts = torch.bincount(labels[labels >= 0], minlength=classes).float()  # a loss may ignore negative ones
        constant = (counts / counts.sum()).clamp_min(1e-12).log().expand(len(labels), -1)
    else:
        return None
    return float(loss(constant, labels))
