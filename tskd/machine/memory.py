"""Memory and processors of this process: how much it held at most, what becomes of freed memory, how many it may use.

glibc hands blocks of 32 MiB and more, and the free top of its heap, back to the system at once. The next step of a
training asks for the same blocks and faults the same pages in anew, which took a third of a U-Net's step at 256 px on
a virtual machine. So freed memory is kept between steps and given back between stages.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, malloc.h."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees from now on; does nothing where the C library is not glibc."""
    if _is_glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_MMAP_MAX, 0)


def give_back_freed_memory() -> None:
    """Give the pages of all freed blocks back to the system."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process in MiB since the last reset (not on Linux: its start).

    0 where the system does not say (Windows).
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def peak_gpu_memory_mb() -> float:
    """Return the most that tensors of this process held on its GPU, in MiB since the last reset; 0 without a GPU."""
    gpu = gpu_in_use()
    return round(gpu.max_memory_allocated() / 1024**2, 1) if gpu else 0.0


def reset_peaks() -> None:
    """Let both peaks count from now on; where the system does not allow it, the first counts from the start."""
    if gpu := gpu_in_use():
        gpu.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return


def gpu_in_use() -> Any:
    """Return ``torch.cuda`` where this process has used it; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
