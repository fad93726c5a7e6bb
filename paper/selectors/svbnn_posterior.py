"""The spike-and-slab variational posterior of SVBNN: its prior, its divergence, draws and their gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def prior_log_inclusion(sizes: Sequence[int], num_data: int) -> float:
    """Return log λ of the prior: −log λ = log T + 0.1·[(L + 1)·log N + log(√n·p)].

    Args:
        sizes: p inputs, the units of the L hidden layers, and the outputs; T weights and biases in all, and N is the
            width of the widest hidden layer (the paper's layers are of one width).
        num_data: n.

    Returns:
        log λ, the log prior probability that a weight is not zero.

    Example:
        >>> round(prior_log_inclusion((200, 7, 7, 7, 1), 3000), 4)
        -9.0396

    Reference:
        Bai, Song and Cheng 2020, section 4 (choice of λ), as in the released code.
    """
    inner = sizes[1:-1]  # Paper: layers of one width N; of unequal ones, the widest stands for N
    count = sum((before + 1) * after for before, after in zip(sizes, sizes[1:]))
    return -(
        math.log(count) + 0.1 * ((len(inner) + 1) * math.log(max(inner)) + math.log(math.sqrt(num_data) * sizes[0]))
    )


def kl_divergence(mu: Tensor, sigma: Tensor, phi: Tensor, log_inclusion: float, slab_scale: float) -> Tensor:
    """Return each weight's divergence of φN(μ, σ²) + (1 − φ)δ₀ from λN(0, σ₀²) + (1 − λ)δ₀.

    φ·log(φ/λ) + (1 − φ)·log((1 − φ)/(1 − λ)) + φ·[log(σ₀/σ) + (σ² + μ²)/(2σ₀²) − ½].

    Args:
        mu: μ.
        sigma: σ.
        phi: φ.
        log_inclusion: log λ.
        slab_scale: σ₀.

    Returns:
        Tensor of the same shape.

    Example:
        >>> kl_divergence(torch.tensor([0.0]), torch.tensor([1.3]), torch.tensor([0.2]), math.log(0.2), 1.3).abs() < 1e-6
        tensor([True])

    Reference:
        Bai, Song and Cheng 2020, section 4.
    """
    gate = torch.xlogy(phi, phi) - phi * log_inclusion
    gate += torch.xlogy(1 - phi, 1 - phi) - (1 - phi) * math.log1p(-math.exp(log_inclusion))
    return gate + phi * (math.log(slab_scale) - sigma.log() + (sigma**2 + mu**2) / (2 * slab_scale**2) - 0.5)


class SpikeSlabPosterior:
    """Independent weights γ·N(μ, σ²), γ ~ Bernoulli(φ), with hard gates forward and binary-concrete gates backward.

    A draw is w = γ·(μ + σε) with γ = [θ + logit u > 0], θ = logit φ, σ = softplus(ρ). Its gradient takes γ for
    sigmoid((θ + logit u)/T): ∂γ/∂θ = s(1 − s)/T.

    Args:
        size: number of weights.
        log_inclusion: log λ of the prior.
        slab_scale: σ₀ of the prior.
        gate_temperature: T of the binary concrete.
        generator: draws μ ~ U(−0.6, 0.6) at the start.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> SpikeSlabPosterior(4, -9.0, 1.3, 0.5, generator).phi
        tensor([0.9900, 0.9900, 0.9900, 0.9900])

    Reference:
        Bai, Song and Cheng 2020, section 4 and Algorithm 1.
    """

    def __init__(
        self,
        size: int,
        log_inclusion: float,
        slab_scale: float,
        gate_temperature: float,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.log_inclusion, self.slab_scale, self.gate_temperature = log_inclusion, slab_scale, gate_temperature
        self.parameters = torch.empty(3, size, dtype=dtype)
        self.gradient = torch.empty_like(self.parameters)
        self.mu, self.rho, self.theta = self.parameters
        self.mu.uniform_(-0.6, 0.6, generator=generator)
        self.rho.fill_(-6.0)
        self.theta.fill_(math.log(0.99 / 0.01))
        self._epsilon, self._logit = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)

    @property
    def phi(self) -> Tensor:
        """φ, the posterior inclusion probability of each weight."""
        return torch.sigmoid(self.theta)

    @property
    def sigma(self) -> Tensor:
        """σ, the standard deviation of each weight that is not zero."""
        return F.softplus(self.rho)

    def kl(self) -> float:
        """Return the divergence from the prior, summed over the weights."""
        return float(kl_divergence(self.mu, self.sigma, self.phi, self.log_inclusion, self.slab_scale).sum())

    def draw_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Overwrite `out` with a draw of the weights, and remember its noise for `gradient_`."""
        self._epsilon.normal_(generator=generator)
        self._logit.uniform_(generator=generator).logit_().add_(self.theta)
        torch.mul(self.sigma, self._epsilon, out=out)
        return out.add_(self.mu).mul_(self._logit > 0)

    def gradient_(self, weight_gradient: Tensor, kl_weight: float) -> Tensor:
        """Overwrite `gradient` with ∂(loss + kl_weight·KL)/∂(μ, ρ, θ) at the last draw.

        Args:
            weight_gradient: ∂loss/∂w of the drawn weights.
            kl_weight: share of the divergence that this batch bears.

        Returns:
            `gradient` (3, size).
        """
        g, sigma, phi, variance = weight_gradient, self.sigma, self.phi, self.slab_scale**2
        slab = sigma * self._epsilon + self.mu
        soft = torch.sigmoid(self._logit / self.gate_temperature)
        through = g * (self._logit > 0)
        share = phi * kl_weight
        torch.addcmul(through, share, self.mu, value=1 / variance, out=self.gradient[0])

        through.mul_(self._epsilon).add_(share * (sigma / variance - 1 / sigma))
        torch.mul(through, torch.sigmoid(self.rho), out=self.gradient[1])

        log_odds = math.log(-math.expm1(self.log_inclusion)) - self.log_inclusion  # −logit λ
        bracket = (sigma.square() + self.mu.square()).div_(2 * variance).sub_(sigma.log())
        bracket.add_(self.theta).add_(log_odds + math.log(self.slab_scale) - 0.5)
        gate = slab.mul_(g).mul_(soft).mul_(1 - soft).div_(self.gate_temperature)
        torch.addcmul(gate, bracket, share.mul_(1 - phi), out=self.gradient[2])
        return self.gradient
