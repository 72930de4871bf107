"""Memory of one training run against its estimate, in processes of their own; started by test_memory.py.

python -m tools.measure_memory STAGE CONFIG prints two numbers of bytes: the estimate's total, and how much
the largest resident size of the run exceeds what the process took before it (on a GPU: what CUDA allocated).
A run of a single clip comes first, so that what libraries take at their first use is not counted, and freed
memory lies in one heap of small pages, as far as glibc allows, so machines differ little.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import torch

from medsora.config.load import load_config
from medsora.config.schema import Config, PhaseConfig
from medsora.training.dry_run import report as dry_run
from medsora.training.dry_run.memory import MemoryEstimate
from medsora.training.stage1.loop import train_vae
from medsora.training.stage2.loop import train_dit

M_ARENA_MAX, PR_SET_THP_DISABLE = -8, 41  # from glibc's malloc.h and Linux' prctl.h


def main() -> None:
    """Estimate in a forked process, which leaves no traces in this one; then train; print both."""
    stage, path = sys.argv[1:]
    config, train = load_config(path), train_vae if stage == "vae" else train_dit
    if (child := os.fork()) == 0:
        print(estimated(stage, config), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "estimating failed"
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc:
        libc.mallopt(M_ARENA_MAX, 1)
        libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    train(_of_one_clip(config))
    gc.collect()
    if libc:
        libc.malloc_trim(0)
    before = _status_bytes("VmRSS")
    train(config)
    on_gpu = torch.cuda.is_available()
    print(torch.cuda.max_memory_allocated() if on_gpu else _status_bytes("VmHWM") - before)


def _of_one_clip(config: Config) -> Config:
    """Return a run of one step on one clip, in a folder of its own."""
    return replace(
        config,
        run=replace(config.run, name=f"{config.run.name}-one-clip"),
        train_vae=replace(config.train_vae, batch=1, max_steps=1),
        train_dit=replace(config.train_dit, phases=[PhaseConfig(1e-4, 1)], max_steps=1),
    )


def estimated(stage: str, config: Config) -> int:
    """Return the total that the dry run prints."""
    estimates: list[MemoryEstimate] = []
    dry_run.Findings.memory = lambda self, estimate, batch: estimates.append(estimate)
    (dry_run.dry_run_vae if stage == "vae" else dry_run.dry_run_denoiser)(config)
    return estimates[0].tensors if torch.cuda.is_available() else estimates[0].total


def _status_bytes(name: str) -> int:
    """Return VmRSS (now) or VmHWM (largest) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
