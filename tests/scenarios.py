"""Targets that carry their own truth, and thousands of short chains in one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayesprune.samplers import PSGLD, SGHMC, SGLD, CVAdam, Sampler
from bayesprune.samplers.preconditioner import damping

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "CVAdam paper": lambda params, **kw: CVAdam(params, preconditioner="paper", dual_lr=0.0, **kw),
    "CVAdam rms": lambda params, **kw: CVAdam(params, preconditioner="rms", **kw),
    "CVAdam none": lambda params, **kw: CVAdam(params, preconditioner="none", **kw),
    "SGHMC": SGHMC,
    "SGLD": lambda params, betas=(0.0, 1.0), **kw: SGLD(params, **kw),
    "PSGLD": lambda params, betas=(0.0, 1.0), **kw: PSGLD(params, **kw),
}
"""Every sampler class with every preconditioner; those without momentum take no `betas`."""

MOMENTUM = ("CVAdam paper", "CVAdam rms", "CVAdam none", "SGHMC")


def frozen_sampler(name: str, weight: Tensor, tau: Tensor | float | None = None, **settings: object) -> Sampler:
    """Return a sampler of one parameter that stands still at `tau` (1, or 1/2 for the paper's, if None).

    Its state is made by one step at lr = 0, which moves nothing.
    """
    optimizer = SAMPLERS[name]([weight], **settings)
    group = optimizer.param_groups[0]
    lr, group["lr"], group["adapt"] = group["lr"], 0.0, False
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    group["lr"] = lr
    kind, state = group["preconditioner"], optimizer.state[weight]
    if kind != "none" and not (kind == "paper" and tau is None):
        wanted = torch.as_tensor(1.0 if tau is None else tau, dtype=torch.float64)
        value = torch.logit(wanted) if kind == "paper" else (1 / wanted - damping(group)).square()
        state["rho" if kind == "paper" else "second_moment"].copy_(value.expand_as(weight))
    return optimizer


def run_chains(
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    *,
    steps: int,
    keep_every: int,
    burn_in: int,
    tau: Tensor | float | None = None,
    sampler: str = "CVAdam paper",
    midpoint: bool = False,
    **settings: object,
) -> Tensor:
    """Run one chain an entry (or row) of `start` with frozen τ; return the kept states, shape (kept, *start.shape).

    `gradient` is that of the mean negative log-likelihood, without the prior. With `midpoint` the second axis of the
    result is (iterate, midpoint).
    """
    weight = torch.nn.Parameter(start.clone())
    optimizer = frozen_sampler(sampler, weight, tau, **settings)
    kept = []
    for step in range(1, steps + 1):
        weight.grad = gradient(weight.detach())
        optimizer.step()
        if step > burn_in and (step - burn_in) % keep_every == 0:
            state = weight.detach().clone()
            if midpoint:
                with optimizer.midpoint():
                    state = torch.stack([state, weight.detach().clone()])
            kept.append(state)
    return torch.stack(kept)


def variance_with_error(states: Tensor) -> tuple[float, float]:
    """Return the mean square over chains and times of a zero-mean target, and its standard error from independent chains."""
    per_chain = states.double().square().mean(0)
    return float(per_chain.mean()), float(per_chain.std() / math.sqrt(per_chain.numel()))


def gaussian(dim: int, seed: int) -> Tensor:
    """Return a positive definite precision matrix with eigenvalues in [0.3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    return basis @ torch.diag(torch.linspace(0.3, 3.0, dim, dtype=torch.float64)) @ basis.T


def banana(weight: Tensor, prior: float = 0.0) -> Tensor:
    """Return the energy w₁²/2 + 2(w₂ − w₁²/2)² + prior·‖w‖²/2 of a bent, non-Gaussian target."""
    first, second = weight[..., 0], weight[..., 1]
    energy = first.square() / 2 + 2 * (second - first.square() / 2).square()
    return energy + prior / 2 * weight.square().sum(-1)


def banana_gradient(weight: Tensor) -> Tensor:
    first, second = weight[..., 0], weight[..., 1]
    gap = second - first.square() / 2
    return torch.stack([first - 4 * gap * first, 4 * gap], dim=-1)


def banana_moments(num_data: float, prior: float) -> dict[str, float]:
    """Return moments of exp(−N·L) by quadrature on a fine grid."""
    axis = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    density = torch.exp(-num_data * banana(grid, prior))
    density /= density.sum()
    first, second = grid[..., 0], grid[..., 1]
    means = {"w2": second, "w1^2": first**2, "w2^2": second**2, "w1^2 w2": first**2 * second, "w1^4": first**4}
    return {name: float((density * value).sum()) for name, value in means.items()}


def banana_statistics(states: Tensor) -> dict[str, tuple[float, float]]:
    """Return the same moments of chains (kept, chains, 2), each with its standard error over chains."""
    first, second = states[..., 0].double(), states[..., 1].double()
    values = {"w2": second, "w1^2": first**2, "w2^2": second**2, "w1^2 w2": first**2 * second, "w1^4": first**4}
    result = {}
    for name, value in values.items():
        per_chain = value.mean(0)
        result[name] = (float(per_chain.mean()), float(per_chain.std() / math.sqrt(per_chain.numel())))
    return result


def implemented_map(name: str, curvature: float, tau: float, **settings: object) -> tuple[Tensor, Tensor]:
    """Return A and b of the linear step (w, v) ← A(w, v) + b·ε, read off a sampler; a third row is the midpoint's.

    The loss with its prior is curvature·w²/2, so that the gradient without it has curvature − weight_decay.
    """
    columns = []
    wanted = settings.pop("temperature", 1.0)
    for w, v, temperature in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, wanted)):
        weight = torch.nn.Parameter(torch.tensor([w], dtype=torch.float64))
        optimizer = frozen_sampler(name, weight, tau, temperature=temperature, seed=1, **settings)
        optimizer.state[weight]["momentum"].fill_(v)
        weight.grad = (curvature - optimizer.param_groups[0]["weight_decay"]) * weight.detach()
        optimizer.step()
        column = [weight.detach().clone(), optimizer.state[weight]["momentum"].clone()]
        with optimizer.midpoint():
            column.append(weight.detach().clone())
        columns.append(torch.cat(column) / (optimizer.last_noise(weight) if temperature else 1))
    return torch.stack(columns[:2], dim=1), columns[2]


def lyapunov_variance(name: str, curvature: float, tau: float, **settings: object) -> tuple[float, float, float]:
    """Return the exact stationary variances of a sampler's iterate, momentum and midpoint, vec(C) = (I − A⊗A)⁻¹ vec(bbᵀ)."""
    step, noise = implemented_map(name, curvature, tau, **settings)
    system = torch.eye(4, dtype=torch.float64) - torch.kron(step[:2], step[:2])
    covariance = torch.linalg.solve(system, torch.outer(noise[:2], noise[:2]).reshape(-1)).view(2, 2)
    weight, momentum, middle = (step @ covariance @ step.T + torch.outer(noise, noise)).diagonal().tolist()
    return weight, momentum, middle
