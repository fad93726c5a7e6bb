"""Sparse evolutionary training (Mocanu et al., 2018): drop the weights nearest to zero, regrow at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bayesprune.baselines.topology import SparseTraining, lowest, random_entries
from bayesprune.sparsity.schedule import check


class SET(SparseTraining):
    r"""Sparse evolutionary training (SET).

    After every ``every`` steps (an epoch), in each layer, with ζ = ``drop_fraction``:

        remove:  the ⌊ζ·n₊⌋ smallest of the n₊ positive weights and the ⌊ζ·n₋⌋ largest of the n₋ negative ones
        grow:    as many at random vacant places of the same layer, at zero

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero, from the start and after every step.
        every: Optimizer steps between two renewals of the masks: those of an epoch.
        end_step: Optimizer step from which the masks stay; None: they never do.
        drop_fraction: ζ, the same throughout.
        distribution: Layer-wise sparsity: ``"erk"`` (Erdős–Rényi, as published) or ``"uniform"``.
        exclude: Patterns on module names, module types or modules to leave dense.
        seed: Of the method's own random generator.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = SET(model, optimizer, target_sparsity=0.75, every=2)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> masks.hard_sparsity, [int(mask.sum()) for mask in masks.keep_masks.values()]
        (0.75, [23, 17])

    Reference: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity
        inspired by network science" (Nature Communications 9, 2383; arXiv 1707.04780), Box 2.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        every: int,
        end_step: int | None = None,
        drop_fraction: float = 0.3,
        distribution: str = "erk",
        **settings: Any,
    ) -> None:
        check(0 < drop_fraction < 1, f"drop_fraction={drop_fraction} must lie in (0, 1)")
        self.drop_fraction = drop_fraction
        super().__init__(
            model, optimizer, target_sparsity=target_sparsity, every=every, end_step=end_step,
            distribution=distribution, **settings,
        )  # fmt: skip

    def _update_(self) -> None:
        removed = []
        for param, mask in zip(self.params, self._keep):
            weight = param.detach()
            dropped = torch.zeros_like(mask)
            for side in (mask & (weight >= 0), mask & (weight < 0)):
                dropped |= lowest(weight.abs(), side, int(self.drop_fraction * int(side.sum())))
            removed.append(dropped)
        # Paper: new weights are drawn from the initial law; at zero, as here and in RigL's comparison, the function
        # that the network computes is that of the survivors.
        survivors = self._remove_(removed)
        self._set_keep_(
            [mask | random_entries(~mask, int(gone.sum()), self.generator) for mask, gone in zip(survivors, removed)]
        )
