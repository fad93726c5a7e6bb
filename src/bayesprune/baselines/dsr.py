"""Dynamic sparse reparameterization (Mostafa & Wang, 2019): one threshold for all layers, random growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import apportion
from bayesprune.baselines.topology import SparseTraining, lowest, random_entries
from bayesprune.sparsity.schedule import check

_SHARE_OF_PRUNABLE = 0.015  # about 20,000 in the authors' network of 1.45 million sparse weights
_SHARE_OF_KEPT = 0.15  # what that share comes to at a sparsity of 90 %


class DynamicSparseReparameterization(SparseTraining):
    r"""Dynamic sparse reparameterization (DSR): prune below an adaptive global threshold, regrow at random.

    Every ``every`` steps, with the threshold H and the wanted number K* of weights to move:

        prune:   all kept weights with |w| < H: k_l in layer l, K = Σ_l k_l; R_l survive
        adapt:   H ← 2H if K < (1 − tolerance)·K*,   H ← H/2 if K > (1 + tolerance)·K*
        grow:    K·R_l/Σ_j R_j weights in layer l, at random vacant places, at zero

    At least one weight of each layer survives. What a layer cannot hold goes to the others in proportion.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero, from the start and after every step.
        every: Optimizer steps between two renewals, or pairs (from step, every) for a period that changes.
        end_step: Optimizer step from which the masks stay; None: they never do.
        threshold: H at the start.
        wanted: K*; None: 1.5 % of the prunable weights, at most 15 % of the kept ones.
        tolerance: Share by which K may miss K* without changing H.
        distribution: Layer-wise sparsity at the start: ``"uniform"`` (as published) or ``"erk"``.
        exclude: Patterns on module names, module types or modules to leave dense; published on CIFAR: the first
            convolution, the shortcuts and the head (see :func:`~bayesprune.baselines.published`).
        seed: Of the method's own random generator.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = DynamicSparseReparameterization(model, optimizer, target_sparsity=0.75, every=2, wanted=4)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> masks.hard_sparsity, sum(int((p != 0).sum()) for p in masks.params) <= 40
        (0.75, True)

    Reference: Mostafa & Wang 2019, "Parameter efficient training of deep convolutional neural networks by dynamic
        sparse reparameterization" (arXiv 1902.05967), Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        every: int | Sequence[tuple[int, int]] = 100,
        end_step: int | None = None,
        threshold: float = 1e-3,
        wanted: int | None = None,
        tolerance: float = 0.1,
        **settings: Any,
    ) -> None:
        self.periods = [(0, every)] if isinstance(every, int) else sorted((int(a), int(b)) for a, b in every)
        check(
            bool(self.periods) and min(period for _, period in self.periods) >= 1,
            f"every={every} must be at least 1 (optimizer steps between updates), or pairs (from step, every)",
        )
        check(threshold > 0, f"threshold={threshold} must be positive: it is doubled and halved")
        check(wanted is None or wanted >= 1, f"wanted={wanted} must be at least 1 (weights to move at each update)")
        check(0 <= tolerance < 1, f"tolerance={tolerance} must lie in [0, 1)")
        self.threshold = threshold
        self.tolerance = tolerance
        first = self.periods[0][1]
        super().__init__(model, optimizer, target_sparsity=target_sparsity, every=first, end_step=end_step, **settings)
        # Paper: K* is a constant of each network. Above 90 % sparsity the same share of all weights would be most of
        # what is kept (at 99 % all of it, and the threshold would double for ever), hence the second bound.
        kept = self.groups.total - self.groups.zeros(self._keep)
        proposed = min(_SHARE_OF_PRUNABLE * self.groups.total, _SHARE_OF_KEPT * kept)
        self.wanted = wanted or max(1, round(proposed))

    def _period(self) -> int:
        begun = [period for start, period in self.periods if start <= self.step_count]
        return begun[-1] if begun else self.periods[0][1]

    def _update_(self) -> None:
        removed = []
        for param, mask in zip(self.params, self._keep):
            small = mask & (param.detach().abs() < self.threshold)
            if int(small.sum()) == int(mask.sum()):  # all of them: the largest stays
                small = lowest(param.detach().abs(), mask, int(mask.sum()) - 1)
            removed.append(small)
        moved = sum(int(mask.sum()) for mask in removed)
        if moved < (1 - self.tolerance) * self.wanted:
            self.threshold *= 2
        elif moved > (1 + self.tolerance) * self.wanted:
            self.threshold /= 2
        survivors = self._remove_(removed)
        counts = [int(mask.sum()) for mask in survivors]
        room = [mask.numel() - count for mask, count in zip(survivors, counts)]
        budget = apportion(moved, counts, room)
        self._set_keep_([mask | random_entries(~mask, count, self.generator) for mask, count in zip(survivors, budget)])

    def state_dict(self) -> dict[str, Any]:
        """As in the base class, with the present threshold."""
        return {**super().state_dict(), "threshold": self.threshold}

    def _adopt_(self, state: dict[str, Any], read: dict[str, list[Tensor]]) -> None:
        super()._adopt_(state, read)
        self.threshold = float(state["threshold"])
