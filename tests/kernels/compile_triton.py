"""Moved to `tests.support.triton.compile_triton`."""

from medsora.runtime.moved import run_moved

if __name__ == "__main__":
    run_moved("tests.support.triton.compile_triton")
