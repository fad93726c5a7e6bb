"""The step as one Triton kernel over all float32 tensors of a GPU.

The kernel finds its tensors in a table of addresses and hyper-parameters that is copied once a step, so that a step costs
a copy, a product for the kinetic temperatures and a launch, however many tensors there are. It draws the noise of noise.py
and mirrors `single_tensor_step` in step.py; read that first. State may be bfloat16, rounded stochastically.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.samplers.guard import Pending
from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import check_span
from bayesprune.samplers.tensor_step import KINDS, TensorStep

BLOCK = 1024
"""Weights a program."""

_ADDRESSES = ("weight", "gradient", "momentum", "scale", "decay", "kinetic")
_NUMBERS = (
    "lr_beta2", "beta1", "dual_rate", "dual_prior", "dual_noise", "scale_decay", "damping", "shared_decay", "noise", "share",
)  # fmt: skip
_COLUMNS = len(_ADDRESSES) + 4 + 8 + len(_NUMBERS)  # … numel, offset, inner, period, two keys, numbers as their bits

tl: Any = None  # triton.language, once `_kernel` has imported it: a kernel's names are those of its module
_mixed: Any = None
_normal: Any = None
_rounded: Any = None


def available() -> bool:
    """Return whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def reason() -> str:
    """Return what is missing where it is not available."""
    return "triton is not installed (pip install triton)"


def fits(item: TensorStep) -> bool:
    """Return whether the kernel takes this tensor: float32 weights, state in float32 or bfloat16, below 2³¹ of them."""
    state = [item.momentum.dtype] + ([] if item.scale is None else [item.scale.dtype])
    return (
        item.weight.dtype == item.gradient.dtype == torch.float32
        and all(dtype in (torch.float32, torch.bfloat16) for dtype in state)
        and item.weight.numel() < 1 << 31
    )


def sampler_step(items: Sequence[TensorStep], pending: Pending | None = None) -> None:
    """Make one step on tensors of one device that fit; see `step.single_tensor_step` for the equations."""
    groups: dict[tuple[object, ...], list[TensorStep]] = {}
    for item in items:
        if item.weight.numel():
            groups.setdefault(_signature(item), []).append(item)
    blending = [item for item in items if item.blend and item.weight.numel()]
    if blending:
        torch._foreach_mul_([item.kinetic for item in blending], [1 - item.blend for item in blending])
    for group in groups.values():
        flags = _launch(group)
        if pending is not None and group[0].guard:
            pending.add(flags, [item.stream for item in group])
    for item in items:  # torch did not see the write: tell autograd, as an in-place operation would
        torch.autograd.graph.increment_version(item.weight)


def _signature(item: TensorStep) -> tuple[object, ...]:
    """Return what the kernel is compiled for."""
    tensors = (item.weight, item.gradient, item.momentum, item.weight if item.scale is None else item.scale)
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    narrow = (item.momentum.dtype == torch.bfloat16, item.scale is not None and item.scale.dtype == torch.bfloat16)
    return (
        KINDS[item.preconditioner], item.adapts, item.recalls, item.noise_std != 0, item.exact, item.blend != 0,
        isinstance(item.weight_decay, DecayLayout), *narrow, aligned, item.guard,
    )  # fmt: skip


def _launch(items: list[TensorStep]) -> Tensor:
    """Run the kernel on tensors of one signature; return one flag a tensor, of another number than 0 where it was refused."""
    device = items[0].weight.device
    table = torch.from_numpy(np.stack([_row(item) for item in items]))
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    blocks = _blocks(tuple(item.weight.numel() for item in items), device)
    with torch.cuda.device(device if device.type == "cuda" else -1):
        flags = torch.zeros(len(items) if items[0].guard else 1, dtype=torch.int32, device=device)
        _kernel()[(blocks.shape[0],)](table, blocks, flags, *_signature(items[0]), columns=_COLUMNS, block=BLOCK)
    return flags


@functools.lru_cache(maxsize=16)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the number of the tensor and the first weight of every program."""
    rows = [(place, start) for place, size in enumerate(sizes) for start in range(0, size, BLOCK)]
    return torch.tensor(rows, dtype=torch.int32).to(device)


def _row(item: TensorStep) -> np.ndarray:
    """Return one row of the table."""
    numel, decay = item.weight.numel(), item.weight_decay
    check_span(item.offset, numel)
    row = np.empty(_COLUMNS, dtype=np.int64)
    layout = decay if isinstance(decay, DecayLayout) else None
    row[:10] = (
        item.weight.data_ptr(), item.gradient.data_ptr(), item.momentum.data_ptr(),
        0 if item.scale is None else item.scale.data_ptr(), layout.values.data_ptr() if layout else 0,
        item.kinetic.data_ptr(), numel, item.offset, layout.inner if layout else 1, layout.period if layout else 1,
    )  # fmt: skip
    row[10:14] = item.key
    row[14:18] = item.previous_key or (0, 0, 0, 0)
    numbers = (
        item.lr * item.beta2, item.beta1, item.dual_lr / item.num_data, item.dual_lr * item.alpha**2,
        item.dual_lr * item.alpha, item.scale_decay, item.damping, 0.0 if layout else decay, item.noise_std,
        item.blend * item.kinetic_factor / numel,
    )  # fmt: skip
    row[18:] = np.array(numbers, dtype=np.float32).view(np.int32)
    return row


@functools.cache
def _kernel() -> Any:
    """Return the kernel; Triton is imported here and nowhere else."""
    global tl, _normal, _rounded, _mixed
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def _mixed(counter: tl.tensor, k0: tl.tensor, k1: tl.tensor, k2: tl.tensor) -> tl.tensor:
        x = counter * 0xED5AD4BB + k0
        x ^= x >> 17
        x = x * 0xAC4C1B51 + k1
        x ^= x >> 11
        return x * 0x31848BAB + k2

    @triton.jit
    def _normal(position: tl.tensor, keys: tl.tensor) -> tl.tensor:
        """Return the numbers `position` of a stream; `keys` points to its four words."""
        k0, k1 = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
        k2, k3 = tl.load(keys + 2).to(tl.uint32), tl.load(keys + 3).to(tl.uint32)
        x = _mixed((position >> 1).to(tl.uint32), k0, k1, k2).to(tl.int32, bitcast=True)
        z = x ^ (x >> 14)
        # the sine is the cosine a quarter turn before
        y = z.to(tl.uint32, bitcast=True) * 0xADB4A92D + k3 - ((position & 1).to(tl.uint32) << 30)
        u = ((z >> 7) + 1).to(tl.float32)
        bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
        e = ((bits >> 23) - 24).to(tl.float32)
        m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        p = m * 0.2020447360 - 0.3283997945
        p = p * m + 0.3466693030
        p = p * m - 0.3974609288
        p = p * m + 0.4991868769
        p = p * m - 0.6667236404
        p = p * m + 1.0000133479
        p = p * m - 1.9999996278
        radius = tl.sqrt(e * -1.38629436 + m * p)
        t = y.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
        q = t * t
        s = q * 0.0772201290 - 0.5980451742
        s = s * q + 2.5500313773
        s = s * q - 5.1677068789
        s = (s * q + 3.1415925800) * t
        return radius - 2.0 * radius * s * s

    @triton.jit
    def _rounded(value: tl.tensor, random: tl.tensor) -> tl.tensor:
        """Round to bfloat16: up with the probability of the distance, `random` uniform in [0, 2^16)."""
        bits = (value.to(tl.uint32, bitcast=True) + random) & 0xFFFF0000
        finite = tl.abs(value) < float("inf")
        return tl.where(finite, bits.to(tl.float32, bitcast=True), value).to(tl.bfloat16)

    @triton.jit
    def kernel(
        table: tl.tensor, blocks: tl.tensor, flags: tl.tensor, kind: tl.constexpr, adapt: tl.constexpr, recall: tl.constexpr,
        noisy: tl.constexpr, exact: tl.constexpr, blend: tl.constexpr, layout: tl.constexpr, narrow_momentum: tl.constexpr,
        narrow_scale: tl.constexpr, aligned: tl.constexpr, guard: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
    ) -> None:  # fmt: skip
        program = tl.program_id(0)
        row = table + tl.load(blocks + 2 * program).to(tl.int64) * columns
        start = tl.load(blocks + 2 * program + 1)
        weights = tl.load(row).to(tl.pointer_type(tl.float32))
        gradients = tl.load(row + 1).to(tl.pointer_type(tl.float32))
        momenta = tl.load(row + 2).to(tl.pointer_type(tl.bfloat16 if narrow_momentum else tl.float32))
        scales = tl.load(row + 3).to(tl.pointer_type(tl.bfloat16 if narrow_scale else tl.float32))
        if aligned:
            weights, gradients = tl.multiple_of(weights, 16), tl.multiple_of(gradients, 16)
            momenta, scales = tl.multiple_of(momenta, 16), tl.multiple_of(scales, 16)
        i = tl.multiple_of(start, block) + tl.arange(0, block)
        inside = i < tl.load(row + 6)
        position = tl.load(row + 7) + i
        numbers = row + 18
        lr_beta2 = tl.load(numbers).to(tl.int32).to(tl.float32, bitcast=True)
        beta1 = tl.load(numbers + 1).to(tl.int32).to(tl.float32, bitcast=True)

        w = tl.load(weights + i, mask=inside, other=0.0)
        g = tl.load(gradients + i, mask=inside, other=0.0)
        v = tl.load(momenta + i, mask=inside, other=0.0).to(tl.float32)
        if layout:
            group = (i // tl.load(row + 8).to(tl.int32)) % tl.load(row + 9).to(tl.int32)
            decay = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)) + group, mask=inside, other=0.0)
        else:
            decay = tl.load(numbers + 7).to(tl.int32).to(tl.float32, bitcast=True)
        if guard:
            finite = tl.abs(g) < float("inf")
            if tl.max(tl.where(inside & (finite == 0), 1, 0)) > 0:
                tl.store(flags + tl.load(blocks + 2 * program), 1)
            inside = inside & finite
        drift = g + decay * w
        if kind != 0:
            scale = tl.load(scales + i, mask=inside, other=1.0).to(tl.float32)
            if kind == 1:
                if adapt:
                    rate = tl.load(numbers + 2).to(tl.int32).to(tl.float32, bitcast=True)
                    prior = tl.load(numbers + 3).to(tl.int32).to(tl.float32, bitcast=True)
                    inverse = 1.0 + tl.exp(-scale)
                    scale += rate * inverse - prior * decay / inverse
                    if recall:
                        correlation = tl.load(numbers + 4).to(tl.int32).to(tl.float32, bitcast=True)
                        scale -= correlation * _normal(position, row + 14) * g
                inverse = 1.0 + tl.exp(-scale)
            else:
                if adapt:
                    keep = tl.load(numbers + 5).to(tl.int32).to(tl.float32, bitcast=True)
                    scale = keep * scale + (1.0 - keep) * (drift * drift)
                inverse = tl.sqrt(scale) + tl.load(numbers + 6).to(tl.int32).to(tl.float32, bitcast=True)
        v = beta1 * v - lr_beta2 * drift
        if noisy:
            noise = tl.load(numbers + 8).to(tl.int32).to(tl.float32, bitcast=True) * _normal(position, row + 10)
            if exact and kind != 0:
                noise *= tl.sqrt(inverse)
            v += noise
        moved = v
        if kind != 0:
            moved = v / inverse
        tl.store(weights + i, w + moved, mask=inside)
        if narrow_momentum or narrow_scale:
            k1, k2 = tl.load(row + 11).to(tl.uint32), tl.load(row + 12).to(tl.uint32)
            x = _mixed(position.to(tl.uint32), k1, k2, tl.load(row + 13).to(tl.uint32))
            high = x >> 16
            low = (x ^ high) & 0xFFFF
        if narrow_momentum:
            tl.store(momenta + i, _rounded(v, low), mask=inside)
        else:
            tl.store(momenta + i, v, mask=inside)
        if adapt:
            if narrow_scale:
                tl.store(scales + i, _rounded(scale, high), mask=inside)
            else:
                tl.store(scales + i, scale, mask=inside)
        if blend:
            share = tl.load(numbers + 9).to(tl.int32).to(tl.float32, bitcast=True)
            energy = tl.sum(tl.where(inside & (w != 0.0), moved * v, 0.0))  # pruned weights do not count
            tl.atomic_add(tl.load(row + 5).to(tl.pointer_type(tl.float32)), share * energy)

    return kernel
