"""How fast the phantom is rendered, files and all: `python -m benchmarks.phantom`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from medsora.data.phantom import write_phantom


def main() -> None:
    """Render a corpus into a temporary folder and print the rate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantom", description=__doc__)
    parser.add_argument("--clips", type=int, default=200, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=17, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        write_phantom(
            Path(folder, "phantom"), options.clips, options.frames, options.size, 0, workers=options.workers
        )
        seconds = time.perf_counter() - begin
    print(
        f"{options.clips} clips of {options.frames} frames of {options.size}x{options.size} pixels by "
        f"{options.workers} processes: {seconds:.1f} s, {options.clips / seconds * 60:.0f} a minute"
    )


if __name__ == "__main__":
    main()
