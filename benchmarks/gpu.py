"""Every figure that needs a GPU, in under eight minutes, with one command: `python -m benchmarks.gpu`.

It needs PyTorch and Triton and nothing else (docs/gpu-run.md: what is worth bringing along). Each part is a
process of its own with a limit of its own, so that one that fails or hangs costs no other part its figures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.bare_machine import make_do
from benchmarks.measure import RESULTS, device_name, keep

PARTS = {  # seconds at most; together under 480
    "check": 75,
    "sample": 130,
    "train": 100,
    "growth": 45,
    "scan": 110,
}
LENGTHS = (1, 2, 31, 32, 33, 47, 48, 63, 64, 65, 300)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
QUICK = ["--preset", "tiny", "--rounds", "2", "--batches", "1"]  # to try the parts out, on a CPU too


def main() -> int:
    """Run every part that is asked for in turn; exit status 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every part run here?")
    parser.add_argument("--only", choices=tuple(PARTS), help=argparse.SUPPRESS)  # what a part's process does
    options = parser.parse_args()
    if options.only:
        return run_part(options.only, options.results, quick=options.quick)
    if not torch.cuda.is_available() and not options.quick:
        print("there is no GPU here; --quick tries the parts out on a CPU", file=sys.stderr)
        return 2
    failed = []
    for part in options.parts:
        print(f"\n===== {part}, at most {PARTS[part]} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu", "--only", part, "--results", str(options.results)]
        start = time.monotonic()
        try:
            done = subprocess.run(command + ["--quick"] * options.quick, timeout=PARTS[part])
            outcome = "done" if done.returncode == 0 else f"failed with status {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = "ran out of time"
        print(f"===== {part} {outcome} after {time.monotonic() - start:.0f} s", flush=True)
        failed += [part] * (outcome != "done")
    print(f"\nfigures are in {options.results}" + (f"; not whole: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_part(part: str, results: Path, *, quick: bool) -> int:
    """One part, in this process."""
    if missing := make_do():
        print(f"not here, done without: {', '.join(missing)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if part == "check":
        return check(device, results, LENGTHS[:3] if quick else LENGTHS)
    kept, tiny = ["--results", str(results)], QUICK if quick else []
    if part == "sample":
        from benchmarks import sample as module

        sys.argv = ["sample", *kept, *(tiny or ["--batches", "1", "32"])]
    elif part == "train":
        from benchmarks import train as module

        sys.argv = ["train", "--parts", "wiring", *kept, *(tiny or ["--batches", "1", "16"])]
    elif part == "growth":
        from benchmarks import growth as module

        sys.argv = ["growth", *kept, *tiny[:2]]
    else:
        from kernels import bench as module

        sys.argv = ["bench", "--seconds", "0.05"]
        sys.argv += ["--lengths", "48", "--batches", "1"] if quick else []
    module.main()
    return 0


def check(device: torch.device, results: Path, lengths: tuple[int, ...]) -> int:
    """Outputs and every gradient of the Triton scan against the recurrence, on this device."""
    from kernels import backends, mamba2_scan
    from tests.kernels.scan_inputs import output_and_gradients, random_inputs

    reasons = {name: reason for name, reason in backends().items() if reason}
    print(f"{device_name(device)}, torch {torch.__version__}; not here: {reasons or 'nothing'}")
    backend = "torch" if "triton" in reasons else "triton"
    worst: dict[str, float] = {}
    for dtype, tolerance in TOLERANCE.items():
        for length in lengths:
            inputs = random_inputs(length, batch=2, heads=2, headdim=64, d_state=128, orders=2, dtype=dtype)
            inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            actual, expected = (
                output_and_gradients(partial(mamba2_scan, backend=name), inputs)
                for name in (backend, "reference")
            )
            error = largest_error(actual, expected)
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error)
            if not error <= tolerance:
                print(f"{backend}, {dtype}, length {length}: error {error:.1e} exceeds {tolerance:.0e}")
    keep("check", device, {"backend": backend, "largest relative error": worst}, results)
    print(f"{backend} against the recurrence, outputs and gradients, largest relative errors: {worst}")
    return int(any(worst[str(dtype)] > tolerance for dtype, tolerance in TOLERANCE.items()))


def largest_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Over all entries, the largest difference relative to the entry's largest value."""
    return max(
        float((actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in expected.items()
    )


if __name__ == "__main__":
    sys.exit(main())
