"""Builds and calls `native.c`: the fused, multi-threaded float32 step for CPUs.

The C file has no dependency, so that it builds in about a second with the system's compiler; native_cache.py keeps the
shared object and says what is loaded. Without a compiler `available()` is False, `reason` says why, and the torch path is
used. `BAYESPRUNE_NATIVE=0` in the environment switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch

from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.native_cache import Unusable, trusted_library
from bayesprune.samplers.native_library import JOB, check, opened
from bayesprune.samplers.noise import Key, check_span
from bayesprune.samplers.tensor_step import KINDS, TensorStep

reason = ""
"""Why the native step is not available, if it is not."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None (and the reason) where it cannot be built, trusted or loaded."""
    global reason
    if os.environ.get("BAYESPRUNE_NATIVE", "1") == "0":
        reason = "BAYESPRUNE_NATIVE=0 switches it off"
        return None
    try:
        path = trusted_library()
    except Unusable as error:
        reason = str(error)
        return None
    try:
        lib = opened(str(path))
        check(lib)
    except (OSError, ValueError) as error:
        reason = f"{path} cannot be used: {error}"
        return None
    return lib


def available() -> bool:
    """Return whether the native step can be used on this machine."""
    return library() is not None


@functools.cache
def _pool(pid: int, workers: int) -> ThreadPoolExecutor:
    """Return the pool of this process (a fork must not inherit its parent's)."""
    return ThreadPoolExecutor(workers, thread_name_prefix="bayesprune")


def fits(item: TensorStep) -> bool:
    """Return whether the native step takes this tensor: float32 weights and state on a CPU."""
    tensors = (item.weight, item.momentum, item.weight if item.scale is None else item.scale)
    return item.weight.device.type == "cpu" and all(tensor.dtype == torch.float32 for tensor in tensors)


def sampler_step(items: Sequence[TensorStep]) -> list[TensorStep]:
    """Make one step on tensors that fit, return those it refused; see `step.single_tensor_step` for the equations."""
    items = [item for item in items if item.weight.numel()]
    if not items:
        return []
    refused = _run(np.array([_job(item) for item in items], dtype=JOB))
    for item in items:  # torch did not see the write: tell autograd, as an in-place operation would
        torch.autograd.graph.increment_version(item.weight)
    return [items[place] for place in refused if items[place].guard]


_NO_KEY: Key = (0, 0, 0, 0)


def _job(item: TensorStep) -> tuple[object, ...]:
    """Return one row of `JOB`."""
    decay, numel = item.weight_decay, item.weight.numel()
    check_span(item.offset, numel)
    values, inner, period, shared = 0, 1, 1, 0.0
    if isinstance(decay, DecayLayout):
        values, inner, period = decay.values.data_ptr(), decay.inner, decay.period
    else:
        shared = decay
    return (
        item.weight.data_ptr(), item.gradient.data_ptr(), item.momentum.data_ptr(),
        0 if item.scale is None else item.scale.data_ptr(), values, item.kinetic.data_ptr(),
        numel, item.offset, inner, period, item.previous_key or _NO_KEY, item.key,
        item.lr * item.beta2, item.beta1, item.dual_lr / item.num_data, item.dual_lr * item.alpha**2,
        item.dual_lr * item.alpha if item.recalls else 0.0,
        item.scale_decay, item.damping, shared, item.noise_std, item.kinetic_factor / numel, item.blend,
        KINDS[item.preconditioner], item.adapts, item.exact, item.guard,
    )  # fmt: skip


def _run(jobs: np.ndarray) -> list[int]:
    """Run one step of every job, its blocks spread evenly over `torch.get_num_threads()` threads; return the places of
    those with a block that was refused or whose sum is not finite.
    """
    lib = library()
    assert lib is not None
    each = -(-jobs["numel"] // lib.bayesprune_block())
    blocks = int(each.sum())
    sums = np.empty(blocks)
    workers = max(1, min(torch.get_num_threads(), blocks // 32))
    bounds = [blocks * i // workers for i in range(workers + 1)]
    address, count, out = jobs.ctypes.data, len(jobs), sums.ctypes.data
    futures: list[Future[None]] = []
    try:
        for begin, end in zip(bounds[1:-1], bounds[2:]):
            futures.append(_pool(os.getpid(), workers - 1).submit(lib.bayesprune_step, address, count, begin, end, out))
        lib.bayesprune_step(address, count, bounds[0], bounds[1], out)
    finally:  # an interrupt must not free memory that a worker still writes
        wait(futures)
    lib.bayesprune_kinetic(address, count, out)
    if 0 <= float(sums.sum()) < np.inf and float(sums.min()) >= 0:
        return []
    owner = np.repeat(np.arange(count), each)
    return sorted({int(place) for place in owner[~((sums >= 0) & (sums < np.inf))]})


def normal_(out: torch.Tensor, key: Key, start: int = 0) -> torch.Tensor:
    """Fill a contiguous float32 CPU tensor with the numbers of a stream from `start` on (see `noise.counter_normal`)."""
    lib = library()
    assert lib is not None
    check_span(start, out.numel())
    words = np.array(key, dtype=np.uint32)
    lib.bayesprune_normal(out.data_ptr(), out.numel(), start, words.ctypes.data)
    return out
