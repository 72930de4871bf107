"""Moved to `benchmarks.kernels`, which is part of a checkout only."""

import runpy
import sys

if __name__ == "__main__":
    print("note: this command has moved to 'python -m benchmarks.kernels'.", file=sys.stderr)
    runpy.run_module("benchmarks.kernels", run_name="__main__", alter_sys=True)
