"""Stage 1: `accelerate launch train_vae.py --config configs/phantom.yaml [key=value ...]`."""

from __future__ import annotations

from medsora.runtime.exit import exit_with_status
from medsora.training.stage1.command import main

if __name__ == "__main__":
    exit_with_status(main)
