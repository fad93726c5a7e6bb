"""Targets that carry their own truth, and thousands of short chains in one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayesprune.samplers import CVAdam


def frozen_rho(tau: Tensor | float) -> Tensor:
    """Return ρ with sigmoid(ρ) = τ."""
    return torch.logit(torch.as_tensor(tau, dtype=torch.float64))


def run_chains(
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    *,
    steps: int,
    tau: Tensor | float,
    keep_every: int,
    burn_in: int,
    **settings: object,
) -> Tensor:
    """Run one chain an entry (or row) of `start` with frozen τ; return the kept states, shape (kept, *start.shape).

    `gradient` is that of the mean negative log-likelihood, without the prior.
    """
    weight = torch.nn.Parameter(start.clone())
    optimizer = CVAdam([weight], dual_lr=0.0, **settings)  # type: ignore[arg-type]
    weight.grad = torch.zeros_like(weight)
    optimizer._collect()  # creates the state
    optimizer.state[weight]["rho"].copy_(frozen_rho(tau).expand_as(weight))
    kept = []
    for step in range(1, steps + 1):
        weight.grad = gradient(weight.detach())
        optimizer.step()
        if step > burn_in and (step - burn_in) % keep_every == 0:
            kept.append(weight.detach().clone())
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
