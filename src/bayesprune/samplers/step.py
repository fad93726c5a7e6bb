"""One step of every sampler, as a function over flat tensors: the algorithm in a plain loop, and the choice of faster ways."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bayesprune.samplers import dynamics, native, triton
from bayesprune.samplers.foreach import foreach_step
from bayesprune.samplers.guard import Pending, not_finite
from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import Key, counter_bits, counter_normal, round_bfloat16
from bayesprune.samplers.tensor_step import TensorStep

__all__ = ["TensorStep", "check_switches", "fused_reason", "sampler_step", "single_tensor_step"]

_CPU_CHUNK = 1 << 16  # weights a pass of the plain loop on a CPU: its temporaries stay in the cache


def check_switches(foreach: bool | None, fused: bool | None) -> None:
    """Refuse two ways at once."""
    if foreach and fused:
        raise ValueError("foreach=True and fused=True exclude each other; give one.")


def fused_reason(device: torch.device | str) -> str | None:
    """Return why there is no fused kernel for a device, None where there is one."""
    kind = torch.device(device).type
    if kind == "cpu":
        return None if native.available() else native.reason
    if kind == "cuda":
        return None if triton.available() else triton.reason()
    return f"there is none for devices of type {kind!r}"


def sampler_step(
    items: list[TensorStep], *, foreach: bool | None, fused: bool | None, pending: Pending | None = None
) -> list[TensorStep]:
    """Make one step on each tensor, in place; see `single_tensor_step` for the equations."""
    check_switches(foreach, fused)
    several: list[TensorStep] = []
    plain: list[TensorStep] = []
    kernels: dict[torch.device, list[TensorStep]] = {}
    reasons = {} if fused is False or foreach else {d: fused_reason(d) for d in {item.weight.device for item in items}}
    for device, reason in reasons.items():
        if fused and reason:
            raise ValueError(f"fused=True is not available on {device}: {reason}; use fused=None.")
    for item in items:
        device = item.weight.device
        kernel = native if device.type == "cpu" else triton
        if not foreach and reasons.get(device, "") is None and kernel.fits(item):
            kernels.setdefault(device, []).append(item)
        elif foreach or (foreach is None and not fused and device.type != "cpu"):
            several.append(item)
        else:
            plain.append(item)
    guarded = [item for item in (*several, *plain) if item.guard]
    refused = [guarded[place] for place in not_finite([item.gradient for item in guarded])]
    if refused:
        return refused
    for item in plain:
        chunked_step(item)
    foreach_step(several)
    for device, fitting in kernels.items():
        if device.type == "cpu":
            refused += native.sampler_step(fitting)
        else:
            triton.sampler_step(fitting, pending)
    return refused


def chunked_step(item: TensorStep) -> None:
    """Walk a tensor through `single_tensor_step`, in cache-sized chunks on a CPU; keep its state and kinetic temperature."""
    numel, device, dtype = item.weight.numel(), item.weight.device, item.weight.dtype
    if not numel:
        return
    chunk = _CPU_CHUNK if device.type == "cpu" else numel
    energy: Tensor | float = 0.0
    for start in range(0, numel, chunk):
        part = slice(start, min(start + chunk, numel))
        size, first, decay = part.stop - start, item.offset + start, item.weight_decay

        def normal(key: Key, size: int = size, first: int = first) -> Tensor:
            return counter_normal(size, key, start=first, dtype=dtype, device=device)

        momentum = item.momentum[part].to(dtype)
        scale = None if item.scale is None else item.scale[part].to(dtype)
        weight = item.weight[part]
        alive = weight != 0  # pruned weights do not count in the kinetic temperature
        tau = single_tensor_step(
            weight,
            item.gradient[part].to(dtype),
            momentum,
            scale,
            weight_decay=decay.slice(start, part.stop) if isinstance(decay, DecayLayout) else decay,
            noise=normal(item.key) if item.noise_std else 0.0,
            previous_noise=normal(item.previous_key) if item.recalls and item.previous_key else 0.0,
            lr=item.lr, beta1=item.beta1, beta2=item.beta2, num_data=item.num_data, preconditioner=item.preconditioner,
            adapt=item.adapt, scale_decay=item.scale_decay, damping=item.damping, dual_lr=item.dual_lr, alpha=item.alpha,
            noise_std=item.noise_std, exact=item.exact,
        )  # fmt: skip
        if item.blend:
            energy = energy + (tau * momentum * momentum * alive).sum(dtype=torch.float64)
        _keep(item, part, first, momentum, scale)
    if item.blend:
        mean = torch.as_tensor(energy, device=device) * (item.kinetic_factor / numel)
        item.kinetic.lerp_(mean.to(torch.float32), item.blend)


def _keep(item: TensorStep, part: slice, first: int, momentum: Tensor, scale: Tensor | None) -> None:
    """Write state of lower precision back, rounded stochastically; state in the weight's precision is there already."""
    pairs = [(item.momentum, momentum)] + ([] if item.scale is None or scale is None else [(item.scale, scale)])
    if any(old.dtype != new.dtype for old, new in pairs):
        bits = counter_bits(momentum.numel(), item.key, start=first, device=momentum.device)
        for (old, new), random in zip(pairs if item.adapts else pairs[:1], bits):
            old[part] = round_bfloat16(new.float(), random)


def single_tensor_step(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    scale: Tensor | None,
    *,
    preconditioner: Literal["paper", "rms", "none"],
    adapt: bool,
    weight_decay: Tensor | float,
    noise: Tensor | float,
    previous_noise: Tensor | float,
    lr: float,
    beta1: float,
    beta2: float,
    num_data: float,
    noise_std: float,
    exact: bool,
    scale_decay: float = 0.0,
    damping: float = 0.0,
    dual_lr: float = 0.0,
    alpha: float = 0.0,
) -> Tensor | float:
    """Make one step on one tensor, in place; the noise is an argument."""
    drift = gradient + weight_decay * weight
    tau: Tensor | float = 1.0
    if preconditioner == "paper":
        assert scale is not None
        if adapt:
            dynamics.dual_step_(scale, gradient, previous_noise, weight_decay, alpha, dual_lr, num_data)
        tau = dynamics.mirror_map(scale)
    elif preconditioner == "rms":
        assert scale is not None
        if adapt:
            scale.mul_(scale_decay).addcmul_(drift, drift, value=1 - scale_decay)
        tau = 1 / (scale.sqrt() + damping)
    momentum.mul_(beta1).sub_(drift, alpha=beta2 * lr)
    if noise_std:
        # the exact law's standard deviation at τ is its value at 1 over √τ
        momentum.add_(noise / tau**0.5 if exact else noise, alpha=noise_std)
    weight.add_(tau * momentum)
    return tau
