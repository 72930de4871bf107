"""Stage 2: `accelerate launch train_dit.py --config configs/phantom.yaml --preset tiny [key=value ...]`."""

from __future__ import annotations

from medsora.runtime.exit import exit_with_status
from medsora.training.stage2.command import main

if __name__ == "__main__":
    exit_with_status(main)
