"""Reuse of the memory that a training step frees on a CPU."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and values of glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # free memory kept at the heap's end; the maximum of mallopt
DEFAULT_MAPPED, DEFAULT_KEPT_BYTES = 2**16, 2**17  # glibc's defaults


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, which allocates the same sizes again.

    By default it maps a large block from the system and hands it back when it is freed, and every page of
    the next one is fetched and cleared anew: a sixth of a small model's training step on a CPU, and more than
    half of one with tensors of a hundred megabytes. Here the main thread's come from the heap, which keeps
    them. That is for work whose sizes repeat: blocks of ever new sizes would leave holes. Other libraries
    than glibc are left as they are.
    """
    _set_malloc(mapped=0, kept_bytes=KEPT_BYTES)


def hand_back_freed_memory() -> None:
    """Undo `keep_freed_memory` in a process that inherited it and whose blocks differ in size: a loader."""
    _set_malloc(mapped=DEFAULT_MAPPED, kept_bytes=DEFAULT_KEPT_BYTES)


def _set_malloc(*, mapped: int, kept_bytes: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, mapped)
        mallopt(M_TRIM_THRESHOLD, kept_bytes)
