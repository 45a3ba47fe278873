"""What this process may use of its machine, and how it keeps memory."""

import ctypes
import os

# glibc's mallopt: keep freed memory in the process. Without it eager PyTorch at batch 8 is mostly
# page faults, and every speed-up over it would be flattered by 1.4 to 1.6 times.
MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 256 * 2**20)}


def usable_cores() -> int:
    """The CPU cores this process may use: its affinity mask where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_allocator() -> bool:
    """Make glibc's malloc keep its memory for the rest of this process; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in MALLOPT.values())
