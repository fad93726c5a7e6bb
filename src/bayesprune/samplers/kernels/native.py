"""Builds and calls `native.c`: the fused, multi-threaded float32 step for CPUs.

The C file has no dependency, so that it builds in about a second with the system's compiler; the shared object is
cached by a hash of source, flags and processor. Without a compiler `available()` is False and the torch path is used.
`BAYESPRUNE_NATIVE=0` in the environment switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import BLOCK

if TYPE_CHECKING:
    from bayesprune.samplers.functional import TensorStep

_FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-ffinite-math-only", "-fno-signed-zeros",  # a clamp is then one instruction; sums of NaN stay NaN
    "-shared", "-fPIC",
)  # fmt: skip

JOB = np.dtype(
    {
        "names": [
            "w", "g", "v", "rho", "decay", "numel", "inner", "period", "key_prev", "key",
            "lr_beta2", "beta1", "dual_lr", "inv_num_data", "decay_scalar", "alpha", "noise", "exact", "has_previous", "unused",
        ],
        "formats": ["u8"] * 5 + ["i8"] * 3 + ["4u4"] * 2 + ["f4"] * 7 + ["i4"] * 3,
    }
)  # fmt: skip
"""Layout of `Job` in native.c: one tensor's pointers and hyper-parameters."""

reason = ""
"""Why the native step is not available, if it is not."""


def _cache_dir() -> Path:
    base = os.environ.get("BAYESPRUNE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "bayesprune"


def _build() -> Path | None:
    """Compile native.c into the cache and return the shared object, or None (and the reason) where that cannot be done."""
    global reason
    compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    if compiler is None:
        reason = "no C compiler (cc, gcc or clang) is on the path"
        return None
    try:
        source = Path(__file__).with_name("native.c")
        processor = platform.machine() + _cpu_flags()
        digest = hashlib.sha256(source.read_bytes() + repr((_FLAGS, compiler, processor)).encode()).hexdigest()[:16]
        target = _cache_dir() / f"native-{digest}.so"
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / "native.so"
            subprocess.run(
                [compiler, *_FLAGS, "-o", str(built), str(source), "-lm"], check=True, capture_output=True, timeout=120
            )
            os.replace(built, target)
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None)
        reason = f"{compiler} could not build native.c: {details.decode(errors='replace') if details else error}"
        return None
    return target


def _cpu_flags() -> str:
    """Return the processor's feature line, so that a cache shared between machines never serves the wrong code."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None where it cannot be built or loaded."""
    global reason
    if os.environ.get("BAYESPRUNE_NATIVE", "1") == "0":
        reason = "BAYESPRUNE_NATIVE=0 switches it off"
        return None
    path = _build()
    if path is None:
        return None
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        reason = f"{path} cannot be loaded: {error}"
        return None
    lib.bayesprune_cv_adam.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    lib.bayesprune_cv_adam.restype = None
    lib.bayesprune_normal.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    lib.bayesprune_normal.restype = None
    lib.bayesprune_job_size.restype = ctypes.c_int64
    if lib.bayesprune_job_size() != JOB.itemsize:
        return None
    return lib


def available() -> bool:
    """Return whether the native step can be used on this machine.

    Example:
        >>> available() in (True, False)
        True
    """
    return library() is not None


@functools.cache
def _pool(pid: int, workers: int) -> ThreadPoolExecutor:
    """Return the pool of this process (a fork must not inherit its parent's)."""
    return ThreadPoolExecutor(workers, thread_name_prefix="bayesprune")


def cv_adam(items: Sequence[TensorStep]) -> None:
    """Make one step of Algorithm 2 on float32 CPU tensors; see `functional.single_tensor_cv_adam` for the equations."""
    items = [item for item in items if item.weight.numel()]
    jobs = np.zeros(len(items), dtype=JOB)
    layouts = [item.weight_decay if isinstance(item.weight_decay, DecayLayout) else None for item in items]
    jobs["w"] = [item.weight.data_ptr() for item in items]
    jobs["g"] = [item.gradient.data_ptr() for item in items]
    jobs["v"] = [item.momentum.data_ptr() for item in items]
    jobs["rho"] = [item.rho.data_ptr() for item in items]
    jobs["decay"] = [layout.values.data_ptr() if layout else 0 for layout in layouts]
    jobs["numel"] = [item.weight.numel() for item in items]
    jobs["inner"] = [layout.inner if layout else 1 for layout in layouts]
    jobs["period"] = [layout.period if layout else 1 for layout in layouts]
    jobs["key_prev"] = [item.previous_key or (0, 0, 0, 0) for item in items]
    jobs["has_previous"] = [item.previous_key is not None for item in items]
    jobs["key"] = [item.key for item in items]
    jobs["lr_beta2"] = [item.lr * item.beta2 for item in items]
    jobs["beta1"] = [item.beta1 for item in items]
    jobs["dual_lr"] = [item.dual_lr for item in items]
    jobs["inv_num_data"] = [1 / item.num_data for item in items]
    jobs["decay_scalar"] = [0.0 if layout else item.weight_decay for item, layout in zip(items, layouts)]
    jobs["alpha"] = [item.alpha for item in items]
    jobs["noise"] = [item.noise_std for item in items]
    jobs["exact"] = [item.exact for item in items]
    _run(jobs)
    for item in items:  # torch did not see the write: tell autograd, as an in-place operation would
        torch.autograd.graph.increment_version(item.weight)


def _run(jobs: np.ndarray) -> None:
    """Run one step of every job, its blocks spread evenly over `torch.get_num_threads()` threads."""
    lib = library()
    assert lib is not None
    blocks = int((-(-jobs["numel"] // BLOCK)).sum())
    workers = max(1, min(torch.get_num_threads(), blocks // 16))
    bounds = [blocks * i // workers for i in range(workers + 1)]
    address, count = jobs.ctypes.data, len(jobs)
    if workers == 1:
        lib.bayesprune_cv_adam(address, count, 0, blocks)
        return
    pool = _pool(os.getpid(), workers - 1)
    futures: list[Future[None]] = []
    try:
        for begin, end in zip(bounds[1:-1], bounds[2:]):
            futures.append(pool.submit(lib.bayesprune_cv_adam, address, count, begin, end))
        lib.bayesprune_cv_adam(address, count, bounds[0], bounds[1])
    finally:  # an interrupt must not free memory that a worker still writes
        wait(futures)


def normal_(out: torch.Tensor, key: Sequence[int]) -> torch.Tensor:
    """Fill a contiguous float32 CPU tensor with the standard normal numbers of one stream (see
    `noise.counter_normal`).
    """
    lib = library()
    assert lib is not None
    words = np.array(key, dtype=np.uint32)
    lib.bayesprune_normal(out.data_ptr(), out.numel(), words.ctypes.data)
    return out
