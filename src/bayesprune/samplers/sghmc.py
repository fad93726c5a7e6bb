"""Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin, 2014), as csgmcmc's cyclical scripts run it."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from bayesprune.samplers.base import Sampler
from bayesprune.samplers.guard import NonFinite
from bayesprune.samplers.temperature import as_betas

PUBLISHED_TEMPERATURE = 1 / 50_000
"""T of csgmcmc's scripts for cSGLD and cSGHMC: next to nothing of what moves a weight is then injected noise."""


class SGHMC(Sampler):
    r"""Stochastic gradient Hamiltonian Monte Carlo: Langevin dynamics with momentum and no preconditioner.

        v ← β₁v − β₂·l·(g + weight_decay·w) + √(2(1−β₁)β₂·l·T/N)·ε
        w ← w + v

    csgmcmc's cSGHMC is this at friction α = 1 − β₁ = 0.9, driven by `CyclicalLR` and, for its noise, `CyclicalNoise`.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l, in SGD's units.
        num_data: Number of training examples N behind the mean loss.
        betas: Momentum retention β₁ in [0, 1) and gradient scale β₂ > 0.
        weight_decay: Prior precision over N (δ/N); None is 10/N, a prior standard deviation of 0.32.
        temperature: T ≥ 0; csgmcmc's scripts have `PUBLISHED_TEMPERATURE` = 1/50,000, an optimizer with snapshots.
        seed, generator, foreach, fused, nonfinite: As in `Sampler`.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = SGHMC(model.parameters(), lr=0.1, num_data=50_000, temperature=1 / 200)
        >>> model(torch.ones(8, 3)).square().mean().backward()
        >>> optimizer.step()

    Reference:
        Chen, Fox & Guestrin, "Stochastic gradient Hamiltonian Monte Carlo" (2014), equation 15; Zhang et al. (2020),
        Algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        betas: tuple[float, float] = (0.9, 1.0),
        weight_decay: float | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        nonfinite: NonFinite = "raise",
    ) -> None:
        defaults = dict(
            lr=lr, num_data=num_data, betas=as_betas(betas), weight_decay=weight_decay, temperature=temperature,
            preconditioner="none", adapt=True,
        )  # fmt: skip
        super().__init__(
            params, defaults, seed=seed, generator=generator, foreach=foreach, fused=fused, nonfinite=nonfinite
        )
