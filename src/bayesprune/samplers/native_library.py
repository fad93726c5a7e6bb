"""The compiled step's interface, and the test that a library must pass before it is used; run as a script, the test alone.

It needs ctypes and numpy only, so that a process of its own, which a broken library may kill, is there at once.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

JOB = np.dtype(
    [
        (name, kind)
        for kind, names in (
            ("u8", "w g v scale decay kinetic"),
            ("i8", "numel offset inner period"),
            ("4u4", "key_prev key"),
            (
                "f4",
                "lr_beta2 beta1 dual_rate dual_prior dual_noise scale_decay damping decay_scalar noise factor blend",
            ),
            ("i4", "preconditioner adapt exact guard"),
        )
        for name in names.split()
    ],
    align=True,
)
"""Layout of `Job` in native.c: one tensor's pointers and hyper-parameters."""


def opened(path: str) -> ctypes.CDLL:
    """Return the library with its functions' types."""
    lib = ctypes.CDLL(path)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    try:
        lib.bayesprune_step.argtypes = [pointer, integer, integer, integer, pointer]
        lib.bayesprune_kinetic.argtypes = [pointer, integer, pointer]
        lib.bayesprune_normal.argtypes = [pointer, integer, integer, pointer]
        for function in (lib.bayesprune_step, lib.bayesprune_kinetic, lib.bayesprune_normal):
            function.restype = None
        lib.bayesprune_block.restype = lib.bayesprune_job_size.restype = integer
        size = lib.bayesprune_job_size()
    except AttributeError as error:
        raise OSError(f"it lacks a function ({error})") from None
    if size != JOB.itemsize:
        raise OSError(f"its jobs have {size} bytes, not {JOB.itemsize}: it is another version's")
    return lib


def check(lib: ctypes.CDLL) -> None:
    """Step w = 1 along g = 1 without noise, past a block's end, and draw numbers of a stream."""
    count, block = 1500, lib.bayesprune_block()
    w, g, v = np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)
    kinetic, sums = np.zeros(1, np.float32), np.zeros(-(-count // block))
    job = np.zeros(1, JOB)
    job["w"], job["g"], job["v"], job["kinetic"] = (array.ctypes.data for array in (w, g, v, kinetic))
    job["numel"], job["inner"], job["period"] = count, 1, 1
    job["lr_beta2"], job["beta1"], job["decay_scalar"], job["factor"], job["blend"] = 0.1, 0.9, 0.5, 1 / count, 1
    lib.bayesprune_step(job.ctypes.data, 1, 0, len(sums), sums.ctypes.data)
    lib.bayesprune_kinetic(job.ctypes.data, 1, sums.ctypes.data)
    stepped = np.abs(w - 0.85).max() < 1e-6 and np.abs(v + 0.15).max() < 1e-6 and abs(kinetic[0] - 0.0225) < 1e-6
    numbers, key = np.zeros(count, np.float32), np.arange(1, 5, dtype=np.uint32)
    lib.bayesprune_normal(numbers.ctypes.data, count, 1, key.ctypes.data)
    if not stepped or not abs(numbers.std() - 1) < 0.1 or not abs(numbers.mean()) < 0.1:
        raise ValueError("the step computes something else")


if __name__ == "__main__":
    check(opened(sys.argv[1]))
