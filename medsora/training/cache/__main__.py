"""Moved to `medsora.training.fill_caches`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("medsora.training.fill_caches")
