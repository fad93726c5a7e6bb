"""RigL (Evci et al., 2020): drop small weights, grow where the gradient is largest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.topology import SparseTraining, cosine_decay, highest, lowest
from bayesprune.sparsity.schedule import check


class RigL(SparseTraining):
    r"""The rigged lottery (RigL): sparse training that grows weights by the dense gradient.

    Every ``every`` = ΔT steps until ``end_step`` = T_end, in place of the optimizer's step, in each layer:

        f = drop_fraction/2·(1 + cos(π·t/T_end)),   k = ⌊f·(weights kept)⌋
        drop:  the k smallest |w| of the kept weights
        grow:  the k largest |∇ℓ| of all places that are vacant after the drop, at zero

    The gradient is that of the masked network at every place, kept or not, taken from ``param.grad`` before the
    optimizer sees it. At such a step no parameter moves: the gradients are set aside and given back after it. A weight
    dropped and grown at once has never left and keeps its value; all others grow at zero with a fresh optimizer state.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero, from the start and after every step.
        end_step: Optimizer step from which the masks stay; published: at 75 % of the run.
        every: ΔT.
        drop_fraction: Share of the kept weights dropped at the start; it falls to zero by a cosine.
        distribution: Layer-wise sparsity: ``"erk"`` or ``"uniform"``; both are published, the first is better.
        exclude: Patterns on module names, module types or modules to leave dense.
        seed: Of the first masks.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = RigL(model, optimizer, target_sparsity=0.75, every=2, end_step=6)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> masks.hard_sparsity, [int(mask.sum()) for mask in masks.keep_masks.values()]
        (0.75, [23, 17])

    Reference: Evci et al. 2020, "Rigging the lottery: making all tickets winners" (arXiv 1911.11134), Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        end_step: int,
        every: int = 100,
        drop_fraction: float = 0.3,
        distribution: str = "erk",
        **settings: Any,
    ) -> None:
        check(0 < drop_fraction < 1, f"drop_fraction={drop_fraction} must lie in (0, 1)")
        self.drop_fraction = drop_fraction
        self._aside: list[tuple[Tensor, Tensor]] = []
        super().__init__(
            model, optimizer, target_sparsity=target_sparsity, every=every, end_step=end_step,
            distribution=distribution, **settings,
        )  # fmt: skip

    def _update_(self) -> None:
        assert self.end_step is not None
        fraction = cosine_decay(self.step_count, self.end_step, self.drop_fraction)
        keep = []
        for param, mask in zip(self.params, self._keep):
            count = int(fraction * int(mask.sum()))
            if param.grad is None or count == 0:
                keep.append(mask)
                continue
            survivors = mask & ~lowest(param.detach().abs(), mask, count)
            keep.append(survivors | highest(param.grad.abs(), ~survivors, count))
        self._set_keep_(keep)

    @torch.no_grad()
    def _with_gradient_(self) -> None:
        if self._aside or not self._due():
            return
        self._update_()
        self._freeze_()
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        self._aside = [(param, param.grad) for param in params if param.grad is not None]
        for param, _ in self._aside:
            param.grad = None  # torch's optimizers leave a parameter without gradient as it is

    @torch.no_grad()
    def _post_step(self, *_: Any) -> None:
        """The masks were renewed in the step's place."""
        self.step_count += 1
        self._after_step_()
        for param, grad in self._aside:
            param.grad = grad
        self._aside = []
