"""What the sparse-training baselines share: masks on single weights, sparse from the start, and how weights are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import layer_counts
from bayesprune.sparsity import Groups, partition
from bayesprune.sparsity.criteria import keep_largest
from bayesprune.sparsity.masks import MaskHolder
from bayesprune.sparsity.partition import Exclude
from bayesprune.sparsity.schedule import check
from bayesprune.sparsity.zeroing import Zeroing


def lowest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """The ``count`` smallest entries among the marked ones; ties go by position, NaN counts as largest."""
    pool = values[among].nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    if count > len(pool):
        raise ValueError(f"count={count} is more than the {len(pool)} entries to choose among")
    found = torch.zeros_like(among)
    found[among] = ~keep_largest(pool, len(pool) - count)
    return found


def highest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """The ``count`` largest entries among the marked ones, as :func:`lowest`; NaN counts as smallest."""
    return lowest(-values, among, count)


def random_entries(among: Tensor, count: int, generator: torch.Generator, order: Tensor | float = 0.0) -> Tensor:
    """``count`` of the marked entries, drawn without replacement; those of a smaller ``order`` first."""
    scores = torch.rand(among.shape, generator=generator, device=generator.device)
    return lowest(scores.to(among.device) + order, among, count)


def _order(weight: Tensor) -> Tensor | float:
    """Of weights that begin at zero in part, as an identity does: 0 for the largest of each output, 1 for the others, 2 for zeros.

    An output whose weights were all zero would be normalised by a variance of nothing.
    """
    zero = weight == 0
    if not zero.any():
        return 0.0
    rows = weight.abs().flatten(1) if weight.dim() > 1 else weight.abs().unsqueeze(1)
    first = torch.zeros_like(rows).scatter_(1, rows.argmax(1, keepdim=True), 1.0).view_as(weight)
    return torch.where(zero, 2.0, 1.0 - first)


def cosine_decay(step: int, end: int, initial: float, final: float = 0.0) -> float:
    """The drop fraction at a step: final + (initial − final)/2·(1 + cos(π·step/end))."""
    return final + (initial - final) / 2 * (1 + math.cos(math.pi * min(step, end) / end))


class SparseTraining(MaskHolder):
    """What the sparse-training baselines share: a mask a weight tensor, sparse at random from the start.

    Of a layer that begins at zero in part, as an identity does, the first masks hold what is not zero before what is.
    After every optimizer step the masked weights are put back to exactly zero, and, unless a method reads it, their
    optimizer state (momentum, averages). Each method renews the masks every ``every`` steps until ``end_step`` and
    keeps exactly as many weights as before.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer, built on the model's parameters.
        target_sparsity: Share of the prunable weights at zero.
        every: Optimizer steps between two renewals of the masks.
        end_step: Optimizer step from which the masks stay; None: they never do.
        distribution: Layer-wise sparsity at the start: ``"uniform"`` or ``"erk"``.
        exclude: Patterns on module names, module types or modules to leave dense.
        seed: Of the method's own random generator.

    Example:
        >>> from bayesprune.baselines import RigL
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = RigL(model, optimizer, target_sparsity=0.9, every=100, end_step=1000)
        >>> isinstance(method, SparseTraining), int((model.weight != 0).sum())
        (True, 10)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        every: int,
        end_step: int | None = None,
        distribution: str = "uniform",
        exclude: Exclude = (),
        seed: int = 0,
    ) -> None:
        check(0 <= target_sparsity < 1, f"target_sparsity={target_sparsity} must lie in [0, 1)")
        check(every >= 1, f"every={every} must be at least 1 (optimizer steps between updates)")
        check(end_step is None or end_step >= 1, f"end_step={end_step} must be at least 1 (an optimizer step)")
        self.target_sparsity = target_sparsity
        self.every = every
        self.end_step = end_step
        self.distribution = distribution
        super().__init__(model, optimizer, partition(model, "weight", exclude=exclude))
        self.generator = torch.Generator(device=self.params[0].device).manual_seed(seed)
        counts = layer_counts([tuple(param.shape) for param in self.params], target_sparsity, distribution)
        self._set_keep_(
            [
                random_entries(mask, count, self.generator, _order(param.detach()))
                for param, mask, count in zip(self.params, self._keep, counts)
            ]
        )
        # A trainer may restore the weights before the optimizer is built, and the masks after it.
        self._found = [param.detach().clone() for param in self.params]
        self._freeze_()
        self._attach_()

    @property
    def params(self) -> list[Tensor]:
        """The prunable weights."""
        return list(self.groups.weights().values())

    @property
    def target_now(self) -> float:
        """The sparsity asked for at the present step."""
        return self.target_sparsity

    def _plan(self) -> Iterable[str]:
        yield f"target: sparsity {self.target_sparsity:.4g}, {self.distribution} over layers"
        yield f"update: every {self.every} steps" + ("" if self.end_step is None else f" until step {self.end_step}")

    def _identity(self) -> tuple[str, str, str]:
        return "method", "method", type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers and strings in nested dicts, masks boolean."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def _adopt_(self, state: dict[str, Any], read: dict[str, list[Tensor]]) -> None:
        kept, wanted = (sum(int(mask.sum()) for mask in masks) for masks in (read["keep"], self._keep))
        check(
            kept == wanted,
            f"state keeps {kept:,} weights, this one {wanted:,}; build it with the same target_sparsity",
        )
        for param, found, mask in zip(self.params, self._found, self._keep):
            if torch.equal(param, found * mask):  # as we left it: what our own first masks took goes back
                param.copy_(found)
        self._found = []
        super()._adopt_(state, read)
        self.generator.set_state(state["generator"].cpu())

    def _inherit_(self, old: Any, left: Sequence[tuple[int, Groups, Any]], cuts: Mapping[str, Any]) -> list[str]:
        self.generator = torch.Generator(device=old.generator.device)
        self.generator.set_state(old.generator.get_state())
        self._found = []
        return []

    def _due(self) -> bool:
        """Whether the masks are renewed after ``step_count`` steps."""
        open_ = self.end_step is None or self.step_count < self.end_step
        return open_ and not self._finished and self.step_count > 0 and self.step_count % self._period() == 0

    def _period(self) -> int:
        """Steps between two renewals, at the present step."""
        return self.every

    def _after_step_(self) -> None:
        self._found = []
        self._freeze_()

    def _set_keep_(self, keep: list[Tensor]) -> None:
        """Take new masks, in the memory layout of the weights."""
        super()._set_keep_([torch.empty_like(p, dtype=torch.bool).copy_(mask) for p, mask in zip(self.params, keep)])

    def _remove_(self, removed: list[Tensor]) -> list[Tensor]:
        """Weights and state of what is removed to zero, so that what grows there starts anew; returns the survivors."""
        for param, gone in zip(self.params, removed):
            zero_ = Zeroing(gone)
            zero_(param)
            self._zero_state_(param, zero_)
        return [mask & ~gone for mask, gone in zip(self._keep, removed)]
