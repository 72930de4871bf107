"""What becomes of memory that a training step frees, on a CPU."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and values of glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # free at the heap's end; the most that mallopt takes


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, which asks for the same again.

    By default it maps a large block from the system and hands it back when it is freed, and every page of
    the next one is fetched and cleared anew: a sixth of a small model's training step on a CPU, and more than
    half of one with tensors of a hundred megabytes. Here all comes from the heap, which keeps it. Other
    libraries than glibc are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
