"""Sparse momentum (Dettmers & Zettlemoyer, 2019): weights grow where the momentum is largest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import apportion
from bayesprune.baselines.topology import SparseTraining, cosine_decay, highest, lowest
from bayesprune.sparsity.schedule import check

_DENSE = 0.2  # a layer of lower sparsity counts as nearly dense


class SparseMomentum(SparseTraining):
    r"""Sparse momentum: prune small weights, give their places to the layers and positions of largest momentum.

    After every ``every`` steps (an epoch), with M the momentum, p the drop fraction and A_l the kept weights of layer l:

        p = final_drop_fraction + (drop_fraction − final_drop_fraction)/2·(1 + cos(π·step/end_step))
        prune:         the ⌈p·|A_l|⌉ smallest |w| of A_l, in each layer
        redistribute:  all that was pruned, over the layers in proportion to v_l = mean of |M| over A_l (before pruning)
        grow:          in each layer the vacant places of largest |M|, at zero

    What a layer cannot hold goes to the others alike. A layer of less than 20 % sparsity that gets more than an equal
    share prunes at most its sparsity. A weight pruned and grown at once has never left. The momentum of masked weights
    goes on (their gradient is dense) and is not reset.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: SGD with momentum, Adam (M is its normalised first moment), or one whose state holds ``"momentum"``.
        target_sparsity: Share of the prunable weights at zero, from the start and after every step.
        every: Optimizer steps between two renewals of the masks: those of an epoch.
        end_step: Optimizer steps of the whole run; the last renewal is before it.
        drop_fraction: p at the start.
        final_drop_fraction: p at the end.
        distribution: Layer-wise sparsity at the start: ``"uniform"`` (as published) or ``"erk"``.
        exclude: Patterns on module names, module types or modules to leave dense; published: nothing on CIFAR.
        seed: Of the first masks.

    Raises:
        ValueError: If a setting is out of range or the optimizer has no momentum.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = SparseMomentum(model, optimizer, target_sparsity=0.75, every=2, end_step=8)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> masks.hard_sparsity, sum(int((p == 0).sum()) for p in masks.params)
        (0.75, 120)

    Reference: Dettmers & Zettlemoyer 2019, "Sparse networks from scratch" (arXiv 1907.04840), Algorithm 1; the edge
        cases as in the authors' code (TimDettmers/sparse_learning, sparselearning/core.py and funcs.py).
    """

    clears_state = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        every: int,
        end_step: int,
        drop_fraction: float = 0.5,
        final_drop_fraction: float = 0.005,
        **settings: Any,
    ) -> None:
        check(0 < drop_fraction < 1, f"drop_fraction={drop_fraction} must lie in (0, 1)")
        check(
            0 <= final_drop_fraction <= drop_fraction,
            f"final_drop_fraction={final_drop_fraction} must lie in [0, drop_fraction={drop_fraction}]",
        )
        check(
            all(group.get("momentum", 1) for group in optimizer.param_groups),
            "momentum=0: sparse momentum grows weights by the optimizer's momentum; build SGD with momentum=0.9",
        )
        self.drop_fraction = drop_fraction
        self.final_drop_fraction = final_drop_fraction
        super().__init__(model, optimizer, target_sparsity=target_sparsity, every=every, end_step=end_step, **settings)

    def _update_(self) -> None:
        assert self.end_step is not None
        rate = cosine_decay(self.step_count, self.end_step, self.drop_fraction, self.final_drop_fraction)
        momenta = [momentum_of(self.optimizer, param).abs() for param in self.params]
        means = [float(momentum[mask].mean()) for momentum, mask in zip(momenta, self._keep)]
        whole = sum(means)
        survivors, removed = [], 0
        for param, mask, mean in zip(self.params, self._keep, means):
            kept = int(mask.sum())
            sparsity = 1 - kept / mask.numel()
            growing = mean * len(means) > whole
            share = min(rate, sparsity) if sparsity < _DENSE and growing else rate
            count = min(math.ceil(share * kept), kept - 1)  # no layer dies
            survivors.append(mask & ~lowest(param.detach().abs(), mask, count))
            removed += count
        vacant = [~mask for mask in survivors]
        room = [int(mask.sum()) for mask in vacant]
        budget = apportion(removed, means, room, overflow="equal")
        self._set_keep_(
            [
                mask | highest(momentum, free, count)
                for mask, momentum, free, count in zip(survivors, momenta, vacant, budget)
            ]
        )


def momentum_of(optimizer: Optimizer, param: Tensor) -> Tensor:
    """The optimizer's momentum of a parameter: an average of its gradients, up to scale."""
    state = optimizer.state.get(param)
    if not state:
        return torch.zeros_like(param)
    if "exp_avg_sq" in state:
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
    for key in ("momentum_buffer", "momentum"):
        if isinstance(state.get(key), Tensor):
            return state[key]
    raise ValueError(
        f"{type(optimizer).__name__} keeps no momentum (its state holds {sorted(state)}); use SGD with momentum, or Adam"
    )
