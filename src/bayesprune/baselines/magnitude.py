"""Gradual magnitude pruning (Zhu & Gupta, 2017): a cubic ramp of sparsity, smallest weights first, for good."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import DISTRIBUTIONS, layer_counts
from bayesprune.sparsity import ForwardPruning
from bayesprune.sparsity.criteria import keep_largest
from bayesprune.sparsity.partition import Exclude
from bayesprune.sparsity.schedule import check


class GradualMagnitudePruning(ForwardPruning):
    r"""Gradual magnitude pruning (GMP): dense at first, then ever sparser along a cubic ramp.

    At t = ``start_step`` + n·``every`` (and at ``end_step``), with t₀ = ``start_step`` and t₁ = ``end_step``:

        s_t = target_sparsity·[1 − (1 − (t − t₀)/(t₁ − t₀))³]

    and the smallest |w| are masked until a share s_t of the prunable weights is at zero: in each layer alike
    (``"uniform"``, as published), by Erdős–Rényi-kernel densities (``"erk"``), or ranked over all layers
    (``"global"``). Masked weights stay at zero. It is :class:`~bayesprune.sparsity.ForwardPruning` on single weights
    without a prior; only the share of each layer is its own.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero from ``end_step`` on.
        end_step: t₁; 75 % of the run is usual.
        start_step: t₀.
        every: Optimizer steps between two rises.
        distribution: ``"uniform"``, ``"erk"`` or ``"global"``.
        exclude: Patterns on module names, module types or modules to leave dense.
        seed: Not used: nothing is drawn. All baselines take one.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = GradualMagnitudePruning(model, optimizer, target_sparsity=0.75, every=2, end_step=6)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> masks.hard_sparsity, [int(mask.sum()) for mask in masks.keep_masks.values()]
        (0.75, [32, 8])

    Reference: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        end_step: int,
        start_step: int = 0,
        every: int = 100,
        distribution: str = "uniform",
        exclude: Exclude = (),
        seed: int = 0,
    ) -> None:
        known = (*DISTRIBUTIONS, "global")
        check(distribution in known, f"distribution={distribution!r} is unknown; choose one of {', '.join(known)}")
        check(0 <= start_step < end_step, f"start_step={start_step} must lie in [0, end_step={end_step})")
        self.distribution = distribution
        self.start_step, self.end_step = start_step, end_step
        super().__init__(
            model, optimizer, sparsity=target_sparsity, warmup_steps=start_step, ramp_end_step=end_step, every=every,
            groups="weight", scope="global", prior=None, exclude=exclude, keep_ends=False,
        )  # fmt: skip

    @property
    def params(self) -> list[Tensor]:
        """The prunable weights."""
        return list(self.groups.weights().values())

    @property
    def soft_sparsity(self) -> None:
        """None: there is no spike."""
        return None

    def _target_masks(self, means: list[Tensor], target: float) -> list[Tensor]:
        if self.distribution == "global":
            return super()._target_masks(means, target)
        kept = [int(torch.count_nonzero(mask)) for mask in self._keep]
        counts = layer_counts([each.shape for each in self.groups], target, self.distribution, capacity=kept)
        return [keep_largest(mean, count, mask) for mean, count, mask in zip(means, counts, self._keep)]
