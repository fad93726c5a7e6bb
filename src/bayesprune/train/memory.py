"""Keeping freed memory in the process: the allocator of Linux returns large blocks to the kernel at once, and page
faults cost more than arithmetic. The setting is the whole process's, so that only a command or a benchmark's `main` makes it.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of unmapping them; returns whether it could be told."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # never a mapping of its own for a block, grow the heap by 64 MiB at a time, give nothing back below 2 GiB
    settings = ((_M_MMAP_MAX, 0), (_M_TOP_PAD, 64 << 20), (_M_TRIM_THRESHOLD, (2 << 30) - 1))
    return all(mallopt(option, value) == 1 for option, value in settings)
