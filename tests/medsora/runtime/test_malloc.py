"""Freed memory stays with the process while it is asked to, and goes back to the system otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

# A process of its own: the settings are the process's, and other tests' blocks would lie in the way.
FREE_AND_COUNT = """
import ctypes, sys
from medsora.runtime.malloc import hand_back_freed_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def left_of_freed(size=64 * 2**20):
    before = resident()
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return (resident() - before) / size

keep_freed_memory()
kept = left_of_freed()
hand_back_freed_memory()
libc.malloc_trim(0)
print(kept, left_of_freed())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries are left as they are")
def test_freed_memory_is_kept_and_handed_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREE_AND_COUNT], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    kept, handed_back = map(float, done.stdout.split())
    assert kept > 0.9
    assert handed_back < 0.1
