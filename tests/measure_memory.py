"""Moved to `tools.measure_memory`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("tools.measure_memory")
