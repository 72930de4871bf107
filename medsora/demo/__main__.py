"""`python -m medsora.demo`: see `medsora.demo.run`."""

from __future__ import annotations

from medsora.demo.run import main
from medsora.runtime.exit import exit_with_status

if __name__ == "__main__":
    exit_with_status(main)
