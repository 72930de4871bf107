"""Evaluation: `python evaluate.py --real DIR --fake DIR --metrics fvd,fid,motion`."""

from __future__ import annotations

from medsora.evaluation.command import OF_A_VAE, main, make_parser
from medsora.runtime.exit import exit_with_status

__all__ = ["OF_A_VAE", "main", "make_parser"]

if __name__ == "__main__":
    exit_with_status(main)
