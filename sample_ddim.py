"""Sampling: `python sample_ddim.py --model runs/phantom/dit-tiny --num-videos 4 --steps 250 --out videos`."""

from __future__ import annotations

from medsora.runtime.exit import exit_with_status
from medsora.sampling.command import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    exit_with_status(main)
