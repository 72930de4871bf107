"""Entry of `python -m benchmarks.steps`."""

from benchmarks.steps.run import main
from medsora.runtime.exit import exit_with_status

if __name__ == "__main__":
    exit_with_status(main)
