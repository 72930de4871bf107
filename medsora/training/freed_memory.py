"""What becomes of memory that a training step frees, on a CPU."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of glibc's malloc.h
MMAP_THRESHOLD, TRIM_THRESHOLD = 2**25, 2**30  # bytes; 2**25 is the most that glibc takes


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, which asks for the same again.

    By default it hands large blocks back and every page of theirs is fetched anew: a sixth of a small model's
    training step on a CPU, and nearly half of a sampling step of 128 frames. Other libraries than glibc are
    left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
