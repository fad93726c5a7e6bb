"""Algorithm 2 as functions: one step over many tensors, and the single-tensor loop that reads like the algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesprune.samplers import dynamics
from bayesprune.samplers.kernels import native
from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import BLOCK, Key, counter_normal

Implementation = Literal["auto", "plain", "native"]
_CPU_CHUNK = 32 * BLOCK  # weights a pass of the torch path on a CPU: its temporaries stay in the cache


@dataclass
class TensorStep:
    """One tensor of one step: flat weight, gradient and state, its decay, its noise streams and hyper-parameters."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    rho: Tensor
    weight_decay: float | DecayLayout
    key: Key
    previous_key: Key | None  # None: no noise was injected before
    lr: float
    beta1: float
    beta2: float
    dual_lr: float
    num_data: float
    alpha: float
    noise_std: float
    exact: bool


def cv_adam(items: list[TensorStep], *, implementation: Implementation = "auto") -> None:
    """Make one step of Algorithm 2 on each tensor, in place.

    Args:
        items: One entry a tensor.
        implementation: See `CVAdam`.

    Example:
        >>> cv_adam([])
    """
    fused: list[TensorStep] = []
    for item in items:
        fits = item.weight.device.type == "cpu" and item.weight.dtype == item.gradient.dtype == torch.float32
        if implementation != "plain" and fits and native.available():
            fused.append(item)
        else:
            _chunked_cv_adam(item)
    if fused:
        native.cv_adam(fused)


def _chunked_cv_adam(item: TensorStep) -> None:
    """Walk a tensor through `single_tensor_cv_adam`: in cache-sized chunks on a CPU, whole elsewhere."""
    numel, device, dtype = item.weight.numel(), item.weight.device, item.weight.dtype
    chunk = _CPU_CHUNK if device.type == "cpu" else max(numel, 1)
    for start in range(0, numel, chunk):
        part = slice(start, min(start + chunk, numel))
        size = part.stop - start
        decay = item.weight_decay
        single_tensor_cv_adam(
            item.weight[part],
            item.gradient[part].to(dtype),
            item.momentum[part],
            item.rho[part],
            weight_decay=decay.slice(start, part.stop) if isinstance(decay, DecayLayout) else decay,
            noise=counter_normal(size, item.key, start=start, dtype=dtype, device=device) if item.noise_std else 0.0,
            previous_noise=counter_normal(size, item.previous_key, start=start, dtype=dtype, device=device)
            if item.previous_key and item.alpha and item.dual_lr
            else 0.0,
            lr=item.lr, beta1=item.beta1, beta2=item.beta2, dual_lr=item.dual_lr, num_data=item.num_data,
            alpha=item.alpha, noise_std=item.noise_std, exact=item.exact,
        )  # fmt: skip


def single_tensor_cv_adam(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    rho: Tensor,
    *,
    weight_decay: Tensor | float,
    noise: Tensor | float,
    previous_noise: Tensor | float,
    lr: float,
    beta1: float,
    beta2: float,
    dual_lr: float,
    num_data: float,
    alpha: float,
    noise_std: float,
    exact: bool,
) -> None:
    """Make one step of Algorithm 2 on one tensor, in place; the noise is an argument.

    Args:
        weight: w, any shape; the tensors below have its shape or broadcast to it.
        gradient: g of the mean loss, without the prior.
        momentum: v, updated in place.
        rho: ρ, updated in place.
        weight_decay: δ/N.
        noise: ε of this step.
        previous_noise: ε of the step before, 0 at the first.
        lr: l.
        beta1: β₁.
        beta2: β₂.
        dual_lr: η.
        num_data: N.
        alpha: α.
        noise_std: Injected standard deviation; with `exact`, its value at τ = 1.
        exact: Whether the noise is divided by √τ.

    Example:
        >>> w, v, rho = torch.ones(1), torch.zeros(1), torch.zeros(1)
        >>> single_tensor_cv_adam(w, torch.ones(1), v, rho, weight_decay=0.0, noise=0.0, previous_noise=0.0, lr=0.1, beta1=0.9,
        ...     beta2=1.0, dual_lr=0.0, num_data=10, alpha=0.0, noise_std=0.0, exact=True)
        >>> w
        tensor([0.9500])

    Reference:
        Algorithm 2.
    """
    dynamics.dual_step_(rho, gradient, previous_noise, weight_decay, alpha, dual_lr, num_data)
    tau = dynamics.mirror_map(rho)
    momentum.mul_(beta1).sub_(gradient + weight_decay * weight, alpha=beta2 * lr)
    if noise_std:
        # the one place where the laws differ: exact_noise_std at τ is its value at 1 over √τ
        momentum.add_(noise * tau.rsqrt() if exact else noise, alpha=noise_std)
    weight.addcmul_(tau, momentum)
