"""Freed memory: kept between the steps of a training, which ask for the same blocks again, given back between stages.

glibc hands blocks of 32 MiB and more, and the free top of its heap, back to the system at once. The next step faults
the same pages in anew, which took a third of a U-Net's step at 256 px on a virtual machine.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, malloc.h."""


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


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
