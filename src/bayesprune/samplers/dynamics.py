"""The equations of the sampler: mirror map, noise laws, stationary law, effective temperature.

Units: see docs/units.md. `curvature` is H, the second derivative of the mean loss plus prior L = ℓ +
(weight_decay/2)‖w‖².
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def paper_noise_scale(temperature: float, num_data: float) -> float:
    """Return k = √(T/N), the paper's noise scale.

    Args:
        temperature: T; the paper's image runs (k = 1/N) are T = 1/N, its tabular runs (k = 1/√N) are T = 1.
        num_data: N, the number of training examples.

    Example:
        >>> paper_noise_scale(1 / 50_000, 50_000) == 1 / 50_000
        True

    Reference:
        Algorithm 2, input k.
    """
    return math.sqrt(temperature / num_data)


def paper_global_scale(noise_scale: float, lr: float) -> float:
    """Return α = k·l^{3/4}, the posterior scale to which the paper couples the step size.

    Example:
        >>> paper_global_scale(0.01, 1.0)
        0.01

    Reference:
        Algorithm 2 (α = k·Δt^{3/2}, l = Δt²).
    """
    return noise_scale * lr**0.75


def paper_noise_std(noise_scale: float, lr: float, beta1: float) -> float:
    """Return √(2 + 2β₁²)·k·l^{3/4}, the standard deviation that the paper injects into the momentum.

    Example:
        >>> round(paper_noise_std(0.01, 1.0, 0.0), 6)
        0.014142

    Reference:
        Algorithm 2, momentum line.
    """
    return math.sqrt(2 + 2 * beta1**2) * noise_scale * lr**0.75


def exact_noise_std(temperature: float, num_data: float, lr: float, beta1: float, beta2: float, tau: Number) -> Number:
    """Return √(2(1−β₁)β₂·l·T/(τN)), the injected standard deviation whose stationary law is the posterior at
    temperature T.

    The momentum obeys v ← β₁v − β₂l∇L + s·ε and the weight w ← w + τv; the fluctuation–dissipation balance of that pair
    fixes s for every l, β₁ and τ. A slowly varying τ is treated as frozen.

    Args:
        temperature: T.
        num_data: N.
        lr: l.
        beta1: Momentum retention β₁ in [0, 1).
        beta2: Gradient scale β₂.
        tau: Local scale τ in (0, 1), number or tensor.

    Returns:
        A number or a tensor like `tau`.

    Example:
        >>> round(exact_noise_std(1.0, 100, 0.01, 0.1, 1.0, 0.5), 6)
        0.018974

    Reference:
        docs/units.md, "the exact noise law".
    """
    variance = 2 * (1 - beta1) * beta2 * lr * temperature / (tau * num_data)
    return variance**0.5


def mirror_map(rho: Tensor) -> Tensor:
    """Return τ = sigmoid(ρ), the gradient of the conjugate of the negative binary entropy."""
    return torch.sigmoid(rho)


def dual_step_(
    rho: Tensor,
    gradient: Tensor,
    noise: Tensor | float,
    weight_decay: Tensor | float,
    alpha: float,
    dual_lr: float,
    num_data: float,
) -> Tensor:
    """Update ρ ← ρ + η·[1/(Nτ) − α²·weight_decay·τ − α·ε ⊙ g] in place, τ = sigmoid(ρ): mirror descent on −ELBO/N."""
    if dual_lr == 0:
        return rho
    tau = mirror_map(rho)
    ascent = 1 / (num_data * tau) - alpha**2 * weight_decay * tau - alpha * noise * gradient
    return rho.add_(ascent, alpha=dual_lr)


def stationary_variance(
    curvature: Number,
    tau: Number,
    lr: float,
    beta1: float,
    beta2: float,
    noise_std: Number,
    gradient_variance: float = 0.0,
) -> Number:
    """Return Var(w) = c²(1+β₁) / [(1−β₁)·a·(2(1+β₁) − a)], a = τβ₂lH, c² = τ²(noise_std² + β₂²l²V): exact in discrete time.

    The midpoint's variance is Var(w)·(1 − a/(2(1+β₁))) = c²/(2(1−β₁)a), which for the exact noise and V = 0 is T/(NH) at
    every stable step size.

    Args:
        curvature: H > 0.
        tau: Frozen local scale τ.
        lr: Constant step size l.
        beta1: β₁.
        beta2: β₂.
        noise_std: Standard deviation injected into the momentum.
        gradient_variance: Variance V of the minibatch gradient of the mean loss, batches drawn independently.

    Returns:
        The stationary variance of a weight whose loss is H·w²/2.

    Raises:
        ValueError: If the step is unstable, a ≥ 2(1+β₁).

    Example:
        >>> s = exact_noise_std(1.0, 100, 1e-4, 0.1, 1.0, 0.5)
        >>> round(stationary_variance(2.0, 0.5, 1e-4, 0.1, 1.0, s) * 100 * 2.0, 4)   # ratio to T/(NH)
        1.0

    Reference:
        The Lyapunov equation of the two-variable linear recursion.
    """
    a = tau * beta2 * lr * curvature
    if bool(torch.as_tensor(a >= 2 * (1 + beta1)).any()):
        raise ValueError(f"lr={lr} is unstable at this curvature: τ·β₂·lr·H must stay below 2(1+β₁); lower lr.")
    variance = tau**2 * (noise_std**2 + (beta2 * lr) ** 2 * gradient_variance)
    return variance * (1 + beta1) / ((1 - beta1) * a * (2 * (1 + beta1) - a))


def kinetic_temperature(
    mean_square: Number, tau: Number, lr: float, beta1: float, beta2: float, num_data: float
) -> Number:
    """Return N·τ(1+β₁)·E[v²]/(2β₂l), the temperature that a momentum of mean square E[v²] has.

    At small steps it is T plus what minibatch noise of variance V adds, N·τβ₂lV/(2(1−β₁)).

    Args:
        mean_square: E[v²].
        tau: τ.
        lr: l > 0.
        beta1: β₁.
        beta2: β₂.
        num_data: N.

    Example:
        >>> round(kinetic_temperature(2 * 0.1 / (1.9 * 100), 1.0, 0.1, 0.9, 1.0, 100), 6)
        1.0

    Reference:
        docs/temperature.md; the Lyapunov equation of the two-variable recursion.
    """
    return num_data * tau * (1 + beta1) * mean_square / (2 * beta2 * lr)


def injected_temperature(
    noise_std: Number, tau: Number, lr: float, beta1: float, beta2: float, num_data: float
) -> Number:
    """Return the temperature that the injected noise means in the small-step limit, N·τ·s² / (2(1−β₁)β₂l).

    For `noise="exact"` this is T. For the paper's rule it is N·k²·τ·√l·(1+β₁²)/((1−β₁)β₂): it drifts with l and τ.

    Args:
        noise_std: s, the standard deviation injected into the momentum, number or tensor.
        tau: τ.
        lr: l > 0.
        beta1: β₁.
        beta2: β₂.
        num_data: N.

    Returns:
        T_eff; 1 is the Bayes posterior, 0 an optimizer.

    Example:
        >>> s = paper_noise_std(paper_noise_scale(1.0, 50_000), lr=0.01, beta1=0.1)
        >>> round(injected_temperature(s, 0.5, 0.01, 0.1, 1.0, 50_000), 3)
        0.056

    Reference:
        Limit a → 0 of `stationary_variance`.
    """
    return num_data * tau * noise_std**2 / (2 * (1 - beta1) * beta2 * lr)


def share_of_step(step: int, lr: float) -> float:
    """Return the share that a step has in the averages that it enters: 1/(step + 1), at least 1/200; 0 at lr = 0."""
    return max(1 / (step + 1), 1 / 200) if lr else 0.0
