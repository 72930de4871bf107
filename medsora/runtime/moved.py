"""Commands whose module has moved: `python -m OLD` runs NEW with a note."""

from __future__ import annotations

import runpy
import sys


def run_moved(name: str) -> None:
    """Run the module `name` as the command that was started, with a note on stderr."""
    print(f"note: this command has moved to 'python -m {name}'.", file=sys.stderr)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
