"""The mixture-of-Gaussians prior of SPLBNN on single weights: density, shrinkage, threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesprune.common.checks import check_number


@dataclass(frozen=True)
class MixturePrior:
    """π(w) = (1 − λ)·N(0, σ₀²) + λ·N(0, σ₁²), on every weight and bias alike.

    Args:
        spike_variance: σ₀², the variance of weights that stand for zero.
        slab_variance: σ₁², larger.
        slab_probability: λ, in (0, 1).

    Raises:
        ValueError: a value outside its range, or a slab that is no wider than the spike.

    Example:
        >>> round(MixturePrior(5e-4, 0.01, 1e-5).threshold(), 3)
        0.117

    Reference:
        Sun, Song and Liang 2021, "Consistent Sparse Deep Learning: Theory and Computation", section 3.
    """

    spike_variance: float = 5e-4
    slab_variance: float = 0.01
    slab_probability: float = 1e-5

    def __post_init__(self) -> None:
        check_number("spike_variance", self.spike_variance, minimum=0, strict=True)
        check_number("slab_probability", self.slab_probability, minimum=0, strict=True, below=1)
        check_number("slab_variance", self.slab_variance, minimum=0, strict=True)
        if self.slab_variance <= self.spike_variance:
            raise ValueError(
                f"slab_variance={self.slab_variance} must exceed spike_variance={self.spike_variance}; raise it"
            )
        if self._odds <= 0:
            raise ValueError(
                f"slab_probability={self.slab_probability} puts every weight on the slab, so that no threshold exists; "
                "lower it"
            )

    @property
    def _odds(self) -> float:
        """log[(1 − λ)·σ₁/(λ·σ₀)], the log odds of the spike at w = 0."""
        rate = math.log1p(-self.slab_probability) - math.log(self.slab_probability)
        return rate + 0.5 * math.log(self.slab_variance / self.spike_variance)

    @property
    def _curvature(self) -> float:
        """1/(2σ₀²) − 1/(2σ₁²), by which w² lowers those log odds."""
        return 0.5 / self.spike_variance - 0.5 / self.slab_variance

    def threshold(self) -> float:
        """Return √( log[((1 − λ)/λ)·σ₁/σ₀] / (1/(2σ₀²) − 1/(2σ₁²)) ), above which a weight is on the slab.

        Returns:
            The |w| at which `slab_responsibility` is ½.
        """
        return math.sqrt(self._odds / self._curvature)

    def slab_responsibility(self, w: Tensor) -> Tensor:
        """Return P(slab | w), the marginal posterior inclusion probability of the Laplace approximation.

        Args:
            w: weights.

        Returns:
            Tensor of the same shape.
        """
        return torch.sigmoid(w.square().mul_(self._curvature).sub_(self._odds))

    def log_density(self, w: Tensor) -> Tensor:
        """Return log π(w), stable in the tails.

        Args:
            w: weights.

        Returns:
            Tensor of the same shape.
        """
        parts = [
            math.log(rate) - 0.5 * math.log(2 * math.pi * variance) - w.square() / (2 * variance)
            for rate, variance in (
                (1 - self.slab_probability, self.spike_variance),
                (self.slab_probability, self.slab_variance),
            )
        ]
        return torch.logaddexp(*parts)

    def curvature(self, w: Tensor) -> Tensor:
        """Return −∂² log π/∂w² = r/σ₀² + (1 − r)/σ₁² − r(1 − r)(1/σ₀² − 1/σ₁²)²w², r = P(spike | w).

        Args:
            w: weights.

        Returns:
            Tensor of the same shape.
        """
        slab, gap = self.slab_responsibility(w), 2 * self._curvature
        return 1 / self.slab_variance + (1 - slab) * gap - slab * (1 - slab) * (gap * w).square()

    def shrink_(self, w: Tensor, step_size: float, num_data: int, buffer: Tensor) -> Tensor:
        """Take the prior's part of a gradient step: w ← w − (step/n)·w·[r/σ₀² + (1 − r)/σ₁²].

        r = P(spike | w); the bracket times w is −∂ log π/∂w.

        Args:
            w: weights, overwritten.
            step_size: length of the step.
            num_data: n.
            buffer: scratch of the shape of `w`.

        Returns:
            `w`.
        """
        rate = step_size / num_data
        torch.mul(w, w, out=buffer)
        buffer.mul_(-self._curvature).add_(self._odds).sigmoid_()
        return w.mul_(buffer.mul_(-2 * rate * self._curvature).add_(1 - rate / self.slab_variance))
