"""Gradual magnitude pruning (Zhu & Gupta, 2017): a cubic ramp of sparsity, smallest weights first, for good."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import DISTRIBUTIONS, layer_counts
from bayesprune.baselines.topology import SparseTraining, check, lowest
from bayesprune.sparsity import cubic_ramp, threshold_for_sparsity


class GradualMagnitudePruning(SparseTraining):
    r"""Gradual magnitude pruning (GMP): dense at first, then ever sparser along a cubic ramp.

    At t = ``start_step`` + n·``every`` (and at ``end_step``), with t₀ = ``start_step`` and t₁ = ``end_step``:

        s_t = target_sparsity·[1 − (1 − (t − t₀)/(t₁ − t₀))³]

    and the smallest |w| are masked until a share s_t of the prunable weights is at zero: in each layer alike
    (``"uniform"``, as published), by Erdős–Rényi-kernel densities (``"erk"``), or ranked over all layers
    (``"global"``). Masked weights stay at zero.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero from ``end_step`` on.
        end_step: t₁; 75 % of the run is usual.
        start_step: t₀.
        every: Optimizer steps between two rises.
        distribution: ``"uniform"``, ``"erk"`` or ``"global"``.
        exclude: Patterns on module names, module types or modules to leave dense.

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

    permanent = True

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
        **settings: Any,
    ) -> None:
        known = (*DISTRIBUTIONS, "global")
        check(distribution in known, f"distribution={distribution!r} is unknown; choose one of {', '.join(known)}")
        check(0 <= start_step < end_step, f"start_step={start_step} must lie in [0, end_step={end_step})")
        self.start_step = start_step
        super().__init__(
            model, optimizer, target_sparsity=target_sparsity, every=every, end_step=end_step,
            distribution=distribution, **settings,
        )  # fmt: skip
        layer_counts([tuple(param.shape) for param in self.params], target_sparsity)  # refuses what is out of reach

    @property
    def target_now(self) -> float:
        """The sparsity that the ramp asks for at the present step."""
        assert self.end_step is not None
        if self._finished:
            return self.target_sparsity
        return cubic_ramp(self.step_count, self.start_step, self.end_step, self.target_sparsity)

    def finish_(self) -> None:
        """Bring the masks to the final target; the model is left at its sparse weights."""
        self._finished = True
        self._update_()
        self._zero_()

    def _first_masks(self) -> list[Tensor]:
        return self._keep

    def _due(self) -> bool:
        assert self.end_step is not None
        begun = self.start_step < self.step_count <= self.end_step and not self._finished
        return begun and ((self.step_count - self.start_step) % self.every == 0 or self.step_count == self.end_step)

    def _update_(self) -> None:
        magnitudes = [param.detach().abs() for param in self.params]
        target = self.target_now
        if self.distribution == "global":
            sizes = [1] * len(magnitudes)
            self._set_keep_(threshold_for_sparsity(magnitudes, sizes, target, kept=self._keep, min_groups=1).keep)
            return
        kept = [int(mask.sum()) for mask in self._keep]
        shapes = [tuple(param.shape) for param in self.params]
        counts = layer_counts(shapes, target, self.distribution, capacity=kept)
        self._set_keep_(
            [
                mask & ~lowest(magnitude, mask, before - after)
                for mask, magnitude, before, after in zip(self._keep, magnitudes, kept, counts)
            ]
        )
