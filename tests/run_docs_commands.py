"""Moved to `tools.run_docs_commands`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("tools.run_docs_commands")
