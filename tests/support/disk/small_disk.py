"""A disk that is soon full: a file system in memory, mounted for one process alone."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # from Linux's sched.h


def mount_small_disk(folder: Path, size_bytes: int) -> None:
    """Mount `size_bytes` of disk on `folder`, for this process, which has no threads, and its children.

    Raises `OSError` where the system does not let users do so.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no namespace of its own")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_bytes}".encode()):
        raise OSError(ctypes.get_errno(), "nothing can be mounted")
