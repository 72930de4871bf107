"""`python -m medsora.training.dino`."""

from medsora.runtime.exit import exit_with_status
from medsora.training.dino.command import main

if __name__ == "__main__":
    exit_with_status(main)
