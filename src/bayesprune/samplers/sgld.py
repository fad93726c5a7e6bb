"""Stochastic gradient Langevin dynamics, plain (Welling & Teh, 2011) and preconditioned (Li et al., 2016)."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from bayesprune.samplers.base import Sampler
from bayesprune.samplers.guard import NonFinite


class SGLD(Sampler):
    r"""Stochastic gradient Langevin dynamics: `SGHMC` without momentum.

        w ← w − l·(g + weight_decay·w) + √(2·l·T/N)·ε

    The last move is kept, for `midpoint` and `kinetic_temperature`: one value a weight.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l, in SGD's units.
        num_data: Number of training examples N behind the mean loss.
        weight_decay: Prior precision over N (δ/N); None is 10/N, a prior standard deviation of 0.32.
        temperature: T ≥ 0.
        seed, generator, foreach, fused, nonfinite: As in `Sampler`.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = SGLD([weight], lr=0.1, num_data=10, temperature=0.0, weight_decay=0.0)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step(); weight.data
        tensor([0.9000])

    Reference:
        Welling & Teh, "Bayesian learning via stochastic gradient Langevin dynamics" (2011), equation 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        weight_decay: float | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        nonfinite: NonFinite = "raise",
    ) -> None:
        defaults = dict(
            lr=lr, num_data=num_data, weight_decay=weight_decay, temperature=temperature,
            preconditioner="none", adapt=True,
        )  # fmt: skip
        super().__init__(
            params, defaults, seed=seed, generator=generator, foreach=foreach, fused=fused, nonfinite=nonfinite
        )


class PSGLD(Sampler):
    r"""Preconditioned SGLD: each weight's step is divided by the root mean square of its gradient.

        ν ← β_ν·ν + (1−β_ν)·(g + weight_decay·w)²,   τ = 1/(√ν + eps + √(weight_decay/N))
        w ← w − l·τ ⊙ (g + weight_decay·w) + √(2·l·τ·T/N) ⊙ ε

    Li et al. leave out the drift ∂τ/∂w; here ν stands still while the group's `adapt` is False (`CyclicalLR` switches it
    off for the second half of each cycle), where there is no such term.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l, in Adam's units.
        num_data: Number of training examples N behind the mean loss.
        weight_decay: Prior precision over N (δ/N); None is 10/N, a prior standard deviation of 0.32.
        temperature: T ≥ 0.
        scale_decay: Retention β_ν of the second moment.
        eps: Added to the root of the second moment.
        seed, generator, foreach, fused, nonfinite: As in `Sampler`.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = PSGLD(model.parameters(), lr=1e-3, num_data=100)
        >>> model(torch.ones(8, 3)).square().mean().backward()
        >>> optimizer.step()

    Reference:
        Li, Chen, Carlson & Carin, "Preconditioned stochastic gradient Langevin dynamics for deep neural networks" (2016),
        Algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        num_data: float,
        weight_decay: float | None = None,
        temperature: float = 1.0,
        scale_decay: float = 0.99,
        eps: float = 1e-5,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        nonfinite: NonFinite = "raise",
    ) -> None:
        defaults = dict(
            lr=lr, num_data=num_data, weight_decay=weight_decay, temperature=temperature,
            preconditioner="rms", adapt=True, scale_decay=scale_decay, eps=eps,
        )  # fmt: skip
        super().__init__(
            params, defaults, seed=seed, generator=generator, foreach=foreach, fused=fused, nonfinite=nonfinite
        )
