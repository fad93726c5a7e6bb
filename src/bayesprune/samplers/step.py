"""One step of every sampler, as a function over flat tensors: the algorithm in a plain loop, and the choice of faster ways."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune.samplers import dynamics, native, triton
from bayesprune.samplers.foreach import foreach_step
from bayesprune.samplers.guard import Pending, not_finite
from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import Key, counter_normal
from bayesprune.samplers.tensor_step import TensorStep

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
            item,
            weight,
            item.gradient[part].to(dtype),
            momentum,
            scale,
            weight_decay=decay.slice(start, part.stop) if isinstance(decay, DecayLayout) else decay,
            noise=normal(item.key) if item.noise_std else 0.0,
            previous_noise=normal(item.previous_key) if item.recalls and item.previous_key else 0.0,
        )
        if item.blend:
            energy = energy + (tau * momentum * momentum * alive).sum(dtype=torch.float64)
        item.keep(start, momentum, scale)
    if item.blend:
        mean = torch.as_tensor(energy, device=device) * (item.kinetic_factor / numel)
        item.kinetic.lerp_(mean.to(torch.float32), item.blend)


def single_tensor_step(
    by: TensorStep,
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    scale: Tensor | None,
    *,
    weight_decay: Tensor | float,
    noise: Tensor | float,
    previous_noise: Tensor | float,
) -> Tensor | float:
    """Make one step on one tensor by the hyper-parameters of `by`, in place, and return τ; the noise is an argument."""
    drift = gradient + weight_decay * weight
    tau: Tensor | float = 1.0
    if by.preconditioner == "paper":
        assert scale is not None
        if by.adapt:
            dynamics.dual_step_(scale, gradient, previous_noise, weight_decay, by.alpha, by.dual_lr, by.num_data)
        tau = dynamics.mirror_map(scale)
    elif by.preconditioner == "rms":
        assert scale is not None
        if by.adapt:
            scale.mul_(by.scale_decay).addcmul_(drift, drift, value=1 - by.scale_decay)
        tau = 1 / (scale.sqrt() + by.damping)
    momentum.mul_(by.beta1).sub_(drift, alpha=by.beta2 * by.lr)
    if by.noise_std:
        # the exact law's standard deviation at τ is its value at 1 over √τ
        momentum.add_(noise / tau**0.5 if by.exact else noise, alpha=by.noise_std)
    weight.add_(tau * momentum)
    return tau
