"""The rank-1 Bayesian layer: a shared linear map or convolution between two sampled vectors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Cauchy, Normal
from torch.nn import functional as F

Family = Literal["gaussian", "cauchy"]

_CLIP = 10.0
"""Draws are clipped to ±10, as in the published layers: a Cauchy draw can be of any size."""


class Rank1Layer(nn.Module):
    r"""A Linear or Conv layer whose weight in member k is W∘(γ_k α_kᵀ), α_k and γ_k drawn anew for every example.

    With the tiled batch x of K·n rows, of which rows k·n … (k+1)·n−1 are member k's, and ∘ over channels,

        y = ((x∘α_k) * W)∘γ_k + b_k,   α_k ~ q(α_k), γ_k ~ q(γ_k),   q = N(mean, softplus(rho)²) or Cauchy(mean, softplus(rho))

    in training as in evaluation mode. W is shared; the means, `rho` and the bias b are the member's own.

    Args:
        shared: The plain layer; it is taken over, its bias becomes the start of each b_k.
        members: K.
        family: "gaussian" or "cauchy", of prior and posterior.
        prior_mean: Prior mean (location).
        prior_std: Prior standard deviation (scale).
        posterior_std: Initial posterior standard deviation (scale).
        random_sign: Probability that a posterior mean starts at +1, not −1.
        generator: Source of the initial signs and standard deviations.

    Example:
        >>> layer = Rank1Layer(nn.Linear(3, 2), members=2)
        >>> layer(torch.ones(6, 3)).shape, layer.alpha_mean.shape, layer.gamma_mean.shape
        (torch.Size([6, 2]), torch.Size([2, 3]), torch.Size([2, 2]))

    Reference:
        Dusenberry et al. (2020), equations 2 and 3; edward2's DenseRank1 and Conv2DRank1.
    """

    alpha_mean: nn.Parameter
    alpha_rho: nn.Parameter
    gamma_mean: nn.Parameter
    gamma_rho: nn.Parameter

    def __init__(
        self,
        shared: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
        members: int,
        *,
        family: Family = "gaussian",
        prior_mean: float = 1.0,
        prior_std: float = 0.1,
        posterior_std: float = (0.001 / 0.999) ** 0.5,
        random_sign: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        linear = isinstance(shared, nn.Linear)
        inputs, outputs = (
            (shared.in_features, shared.out_features) if isinstance(shared, nn.Linear) else (shared.in_channels, shared.out_channels)
        )  # fmt: skip
        self.members, self.family = members, family
        self.prior_mean, self.prior_std = float(prior_mean), float(prior_std)
        self.channel_dim = -1 if linear else 1
        self.generator: torch.Generator | None = None
        weight = shared.weight
        bias = shared.bias
        shared.register_parameter("bias", None)
        self.shared = shared
        self.bias = nn.Parameter(bias.detach().repeat(members, 1)) if bias is not None else None
        start = math.log(math.expm1(posterior_std))
        for name, size in (("alpha", inputs), ("gamma", outputs)):
            signs = torch.rand(members, size, generator=generator) < random_sign
            rho = torch.full((members, size), start)
            if family == "gaussian":  # the published start has a truncated normal jitter, the Cauchy one has none
                nn.init.trunc_normal_(rho, start, 0.1, start - 0.2, start + 0.2, generator=generator)
            self.register_parameter(f"{name}_mean", nn.Parameter((2.0 * signs - 1).to(weight)))
            self.register_parameter(f"{name}_rho", nn.Parameter(rho.to(weight)))

    def factors(self) -> list[nn.Parameter]:
        """Return the posterior's parameters, to be left out of weight decay."""
        return [self.alpha_mean, self.alpha_rho, self.gamma_mean, self.gamma_rho]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output of a tiled batch, K·n rows."""
        examples, rest = divmod(len(x), self.members)
        if rest:
            raise ValueError(
                f"x has {len(x)} rows, no multiple of members={self.members}; tile the batch first (Rank1Network does)."
            )
        alpha = self._draw("alpha", examples, self.generator)
        gamma = self._draw("gamma", examples, self.generator)
        y = self.shared(x * self._along(alpha, x))
        y = y * self._along(gamma, y)
        if self.bias is not None:
            y = y + self._along(self.bias.repeat_interleave(examples, dim=0), y)
        return y

    def kl(self, *, monte_carlo: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return Σ_k [KL(q(α_k) ‖ p) + KL(q(γ_k) ‖ p)] in nats, in closed form or from one draw."""
        total = []
        for name in ("alpha", "gamma"):
            mean, std = self._posterior(name)
            if monte_carlo:
                x = _standard(self.family, mean, generator).mul(std).add(mean)
                law = Normal if self.family == "gaussian" else Cauchy
                posterior = law(mean, std, validate_args=False)
                prior = law(self.prior_mean, self.prior_std, validate_args=False)
                total.append((posterior.log_prob(x) - prior.log_prob(x)).sum())
            elif self.family == "gaussian":
                total.append(gaussian_kl(mean, std, self.prior_mean, self.prior_std).sum())
            else:
                # Paper: a Monte Carlo estimate; the closed form has the same mean and no variance
                total.append(cauchy_kl(mean, std, self.prior_mean, self.prior_std).sum())
        return total[0] + total[1]

    @torch.no_grad()
    def member_weight(
        self, member: int, generator: torch.Generator | None = None, *, mean: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return member k's weight W∘(γ_k α_kᵀ) and bias b_k, from one draw or from the means."""
        vectors = []
        for name in ("alpha", "gamma"):
            centre, std = (tensor[member] for tensor in self._posterior(name))
            draw = (
                centre
                if mean
                else _standard(self.family, centre, generator).mul_(std).add_(centre).clamp_(-_CLIP, _CLIP)
            )
            vectors.append(draw)
        alpha, gamma = vectors
        weight = self.shared.weight
        trailing = [1] * (weight.dim() - 2)
        groups = getattr(self.shared, "groups", 1)
        # a grouped convolution's row o reads the inputs of o's own group
        alpha = alpha.view(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(len(weight), -1, *trailing)
        scaled = weight * alpha * gamma.view(-1, 1, *trailing)
        return scaled, None if self.bias is None else self.bias[member].clone()

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"members={self.members}, family={self.family!r}, prior=({self.prior_mean:g}, {self.prior_std:g})"

    def _posterior(self, name: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"{name}_mean"), F.softplus(getattr(self, f"{name}_rho"))

    def _draw(self, name: str, examples: int, generator: torch.Generator | None) -> Tensor:
        """Return one draw a row of the tiled batch, shape (K·n, channels)."""
        mean, std = (tensor.unsqueeze(1) for tensor in self._posterior(name))
        noise = _standard(self.family, mean.expand(-1, examples, -1), generator)
        return torch.addcmul(mean, std, noise).clamp(-_CLIP, _CLIP).flatten(0, 1)

    def _along(self, vector: Tensor, x: Tensor) -> Tensor:
        """Return (rows, channels) shaped to multiply x's rows and channels, in its dtype."""
        between = [1] * (x.dim() - 2)
        shape = (len(vector), *between, vector.shape[1]) if self.channel_dim == -1 else (*vector.shape, *between)
        return vector.view(shape).to(x.dtype)


def gaussian_kl(mean: Tensor, std: Tensor, prior_mean: float, prior_std: float) -> Tensor:
    """Return KL(N(mean, std²) ‖ N(m, s²)) = log(s/std) + (std² + (mean−m)²)/(2s²) − ½, elementwise.

    Example:
        >>> gaussian_kl(torch.tensor([0.0]), torch.tensor([1.0]), 1.0, 0.1)
        tensor([97.1974])
    """
    return math.log(prior_std) - std.log() + (std.square() + (mean - prior_mean).square()) / (2 * prior_std**2) - 0.5


def cauchy_kl(loc: Tensor, scale: Tensor, prior_loc: float, prior_scale: float) -> Tensor:
    """Return KL(Cauchy(l, s) ‖ Cauchy(m, t)) = log[((s+t)² + (l−m)²) / (4st)], elementwise.

    Example:
        >>> cauchy_kl(torch.tensor([1.0]), torch.tensor([0.3]), 1.0, 0.1)
        tensor([0.2877])

    Reference:
        Chyzak & Nielsen (2019), "A closed-form formula for the Kullback–Leibler divergence between Cauchy
        distributions", arXiv 1905.10965.
    """
    return ((scale + prior_scale).square() + (loc - prior_loc).square()).log() - (4 * scale * prior_scale).log()


def _standard(family: Family, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard draws in the shape of a tensor; on the CPU's generator they are drawn there and moved."""
    device = generator.device if generator is not None else like.device
    noise = torch.empty(like.shape, dtype=like.dtype, device=device)
    noise = noise.normal_(generator=generator) if family == "gaussian" else noise.cauchy_(generator=generator)
    return noise.to(like.device)
