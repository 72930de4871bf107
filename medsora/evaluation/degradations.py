"""Moved to `medsora.evaluation.sanity.degradations`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("medsora.evaluation.sanity.degradations")
