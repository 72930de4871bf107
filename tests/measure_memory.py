"""Memory of one training run against its estimate, in processes of their own; started by test_memory.py.

python -m tests.measure_memory STAGE CONFIG prints two numbers of bytes: the estimate's total, and how much
the largest resident size of the run exceeds what the process took before it (on a GPU: what CUDA allocated).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from medsora.config_file import load_config
from medsora.training import dry_run
from medsora.training.dit_loop import train_dit
from medsora.training.memory import MemoryEstimate
from medsora.training.vae_loop import train_vae


def main() -> None:
    """Estimate in a forked process, which leaves no traces in this one; then train; print both."""
    stage, path = sys.argv[1:]
    config = load_config(path)
    if (child := os.fork()) == 0:
        print(estimated(stage, config), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "estimating failed"
    before = status_bytes("VmRSS")
    (train_vae if stage == "vae" else train_dit)(config)
    on_gpu = torch.cuda.is_available()
    print(torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM") - before)


def estimated(stage: str, config) -> int:
    """Return the total that the dry run prints."""
    found: list[MemoryEstimate] = []
    dry_run.Findings.memory = lambda self, estimate, batch: found.append(estimate)
    (dry_run.dry_run_vae if stage == "vae" else dry_run.dry_run_dit)(config)
    return found[0].tensors if torch.cuda.is_available() else found[0].total


def status_bytes(name: str) -> int:
    """Return VmRSS (now) or VmHWM (largest) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
