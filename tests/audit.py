"""Moved to `tools.audit`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("tools.audit")
