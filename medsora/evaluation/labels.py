"""Moved to `medsora.evaluation.conditional.labels`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("medsora.evaluation.conditional.labels")
