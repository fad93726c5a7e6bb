"""The spike-and-slab prior over groups: E-step, M-step, and the law between threshold and probability.

Per group of n weights: π(w | γ=1) = N(0, 1/δ₁) (slab), π(w | γ=0) = N(0, 1/δ₀) (spike), δ₀ > δ₁, P(γ=0) = p.
Precisions and decays are tied by δ = num_data · decay. Everything is computed on the log-odds scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _precisions(spike_decay: float, slab_decay: float, num_data: float) -> tuple[float, float]:
    if not (math.isfinite(spike_decay) and spike_decay > slab_decay >= 0):
        raise ValueError(
            f"spike_decay={spike_decay} must be larger than slab_decay={slab_decay} (and both not negative): the "
            "spike is the narrower prior; raise spike_decay"
        )
    if not num_data > 0:
        raise ValueError(f"num_data={num_data} must be positive: the number of training examples")
    return num_data * spike_decay, num_data * slab_decay


def soft_threshold_from_probability(
    inclusion: float, size: int, *, spike_decay: float, slab_decay: float, num_data: float
) -> float:
    """The E-step's threshold λ₁ on a group's mean squared weight that a prior inclusion probability implies.

    λ₁ = (1/(δ₀−δ₁)) · [ log(δ₀/δ₁) + (2/n)·log(p/(1−p)) ], with p = 1 − ``inclusion``, n = ``size``,
    δ₀ = ``num_data`` · ``spike_decay``, δ₁ = ``num_data`` · ``slab_decay``.

    Args:
        inclusion: Prior probability 1 − p that a group is on the slab, in (0, 1).
        size: Number n of weights in a group.
        spike_decay: Weight decay δ₀/N of the spike.
        slab_decay: Weight decay δ₁/N of the slab, positive and smaller.
        num_data: Number N of training examples.

    Returns:
        λ₁; negative when the prior odds put every group on the slab.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> round(soft_threshold_from_probability(0.5, 9, spike_decay=2e-3, slab_decay=1e-3, num_data=1000), 6)
        0.693147

    Reference: method, section 5; arXiv 2210.12957, section 4 (soft mask).
    """
    if not 0 < inclusion < 1:
        raise ValueError(f"inclusion_probability={inclusion} must lie strictly between 0 and 1")
    if not slab_decay > 0:
        raise ValueError(
            f"slab_decay={slab_decay} must be positive to derive a threshold from a probability; set it, or give "
            "soft_threshold"
        )
    spike, slab = _precisions(spike_decay, slab_decay, num_data)
    prior_log_odds_of_spike = math.log1p(-inclusion) - math.log(inclusion)
    return (math.log(spike / slab) + 2.0 / size * prior_log_odds_of_spike) / (spike - slab)


def probability_from_soft_threshold(
    soft_threshold: float, size: int, *, spike_decay: float, slab_decay: float, num_data: float
) -> float:
    """The prior inclusion probability 1 − p that a threshold λ₁ implies: the inverse of the above.

    log((1−p)/p) = (n/2) · [ log(δ₀/δ₁) − (δ₀−δ₁)·λ₁ ].

    Args:
        soft_threshold: λ₁ on the group's mean squared weight.
        size: Number n of weights in a group.
        spike_decay: Weight decay δ₀/N of the spike.
        slab_decay: Weight decay δ₁/N of the slab, positive and smaller.
        num_data: Number N of training examples.

    Returns:
        1 − p.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> round(probability_from_soft_threshold(1e-4, 9, spike_decay=1e-3, slab_decay=5e-4, num_data=50_000), 4)
        0.9572

    Reference: method, section 5.
    """
    if not slab_decay > 0:
        raise ValueError(f"slab_decay={slab_decay} must be positive: an improper slab implies no prior probability")
    spike, slab = _precisions(spike_decay, slab_decay, num_data)
    odds = 0.5 * size * (math.log(spike / slab) - (spike - slab) * soft_threshold)
    return 1.0 / (1.0 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1.0 + math.exp(odds))


def inclusion_probability(
    sum_squares: Tensor, size: int, *, inclusion: float, spike_decay: float, slab_decay: float, num_data: float
) -> Tensor:
    """The posterior probability that a group is on the slab, given its weights.

    P(γ=1 | w) = sigmoid( (n/2)·log(δ₁/δ₀) + ((δ₀−δ₁)/2)·Σw² + log((1−p)/p) ). It is ½ exactly where Σw²/n = λ₁.

    Args:
        sum_squares: Σ w² per group.
        size: Number n of weights in a group.
        inclusion: Prior probability 1 − p of the slab.
        spike_decay: Weight decay δ₀/N of the spike.
        slab_decay: Weight decay δ₁/N of the slab.
        num_data: Number N of training examples.

    Returns:
        A tensor of the shape of ``sum_squares``.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> sums = torch.tensor([0.0, 10.0])
        >>> inclusion_probability(sums, 2, inclusion=0.5, spike_decay=2.0, slab_decay=1.0, num_data=1)
        tensor([0.3333, 0.9867])

    Reference: method, section 5; arXiv 2210.12957, section 4 (E-step).
    """
    return SpikeSlabPrior(spike_decay, slab_decay, num_data, inclusion=inclusion).posterior_inclusion(sum_squares, size)


def e_step(mean_square: Tensor, threshold: float | Tensor) -> Tensor:
    """The E-step: which groups are on the slab (True).

    γ_g = 0  ⇔  E[Σw²]/n < λ₁.

    Args:
        mean_square: E[Σw²]/n per group.
        threshold: λ₁.

    Returns:
        The soft mask, True = slab.

    Example:
        >>> e_step(torch.tensor([0.1, 0.2, 0.3]), 0.2)
        tensor([False,  True,  True])

    Reference: method, section 5; arXiv 2210.12957, Algorithm 3.
    """
    return mean_square >= threshold


def m_step(soft_mask: Tensor, *, spike_decay: float, slab_decay: float, dtype: torch.dtype | None = None) -> Tensor:
    """The M-step: the weight decay of each group.

    Args:
        soft_mask: True = slab.
        spike_decay: Weight decay δ₀/N where the mask is False.
        slab_decay: Weight decay δ₁/N where the mask is True.
        dtype: Of the result; the default dtype if None.

    Returns:
        A tensor of the mask's shape.

    Example:
        >>> m_step(torch.tensor([True, False]), spike_decay=2.0, slab_decay=1.0)
        tensor([1., 2.])

    Reference: method, section 5; arXiv 2210.12957, Algorithm 3.
    """
    decay = torch.full(soft_mask.shape, spike_decay, dtype=dtype or torch.get_default_dtype(), device=soft_mask.device)
    return decay.masked_fill_(soft_mask, slab_decay)


@dataclass(frozen=True)
class SpikeSlabPrior:
    """A spike-and-slab prior, given by its threshold or by its prior inclusion probability.

    Args:
        spike_decay: Weight decay δ₀/N of the spike (the narrow prior), larger than ``slab_decay``.
        slab_decay: Weight decay δ₁/N of the slab.
        num_data: Number N of training examples; None if only a threshold is used.
        soft_threshold: λ₁ on a group's mean squared weight; either this or ``inclusion``.
        inclusion: Prior probability 1 − p that a group is on the slab; either this or ``soft_threshold``.

    Raises:
        ValueError: If a value is outside its range, or not exactly one of ``soft_threshold`` and ``inclusion`` is
            given.

    Example:
        >>> prior = SpikeSlabPrior(1e-3, 5e-4, num_data=50_000, soft_threshold=1e-4)
        >>> round(prior.prior_inclusion(size=9), 4)
        0.9572

    Reference: method, section 5.
    """

    spike_decay: float
    slab_decay: float
    num_data: float | None = None
    soft_threshold: float | None = None
    inclusion: float | None = None

    def __post_init__(self) -> None:
        _precisions(self.spike_decay, self.slab_decay, 1.0 if self.num_data is None else self.num_data)
        if (self.soft_threshold is None) == (self.inclusion is None):
            raise ValueError(
                f"soft_threshold={self.soft_threshold} and inclusion_probability={self.inclusion}: give exactly one, "
                "the other follows from it"
            )
        if self.inclusion is not None:
            if self.num_data is None:
                raise ValueError("num_data is needed to derive the soft threshold from inclusion_probability; give it")
            self.threshold(1)

    def threshold(self, size: int) -> float:
        """λ₁ for groups of ``size`` weights."""
        if self.soft_threshold is not None:
            return self.soft_threshold
        assert self.inclusion is not None and self.num_data is not None
        decays = {"spike_decay": self.spike_decay, "slab_decay": self.slab_decay}
        return soft_threshold_from_probability(self.inclusion, size, num_data=self.num_data, **decays)

    def prior_inclusion(self, size: int) -> float:
        """1 − p for groups of ``size`` weights."""
        if self.inclusion is not None:
            return self.inclusion
        assert self.soft_threshold is not None
        decays = {"spike_decay": self.spike_decay, "slab_decay": self.slab_decay}
        return probability_from_soft_threshold(self.soft_threshold, size, num_data=self._require_num_data(), **decays)

    def posterior_inclusion(self, sum_squares: Tensor, size: int) -> Tensor:
        """P(γ=1 | w) for groups of ``size`` weights with the given Σw²."""
        spike, slab = _precisions(self.spike_decay, self.slab_decay, self._require_num_data())
        # The three terms share the factor n(δ₀−δ₁)/2: the sign of the log odds is that of the E-step's comparison.
        return torch.sigmoid(0.5 * size * (spike - slab) * (sum_squares / size - self.threshold(size)))

    def e_step(self, mean_square: Tensor, size: int) -> Tensor:
        """The soft mask (True = slab) of groups of ``size`` weights with the given E[Σw²]/n."""
        return e_step(mean_square, self.threshold(size))

    def _require_num_data(self) -> float:
        if self.num_data is None:
            raise ValueError(
                "num_data is needed for a probability: weight decays are precisions divided by it; give it"
            )
        return self.num_data
