"""Check that the scan keeps its digits: gradients against float64, for small and large steps, at any length.

python -m tools.scan_digits --backends triton --lengths 4096 prints a line per backend, length and step with
the largest error of the output and of every gradient; the exit status is 1 if one exceeds the tolerance.
`compiled` is the backend `torch` through torch.compile. Without a GPU, the kernels of `triton` and
`mamba_ssm` run in Triton's interpreter: minutes per point at a length of 4,096.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.support.scan_inputs import errors, in_float64, of_steps, output_and_gradients, random_inputs
from medsora.kernels import mamba2_scan

BACKENDS = ("reference", "torch", "compiled", "triton", "mamba_ssm")
SIZES = {"heads": 2, "headdim": 16, "d_state": 16}  # with one head, D's gradient would cancel to nothing
STEPS = {"0.001": 1e-3, "1": 1.0, "100": 100.0, "mixed": None}
TOLERANCE = 2e-4  # relative to the largest value


def main(argv: list[str] | None = None) -> int:
    """Print the errors of the backends that are named; return 1 if one is too large."""
    parser = argparse.ArgumentParser(prog="python -m tools.scan_digits", description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS[:4])
    parser.add_argument("--lengths", type=int, nargs="+", default=(1, 48, 300, 4096))
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=tuple(STEPS), help="Δ, about")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    worst = 0.0
    for backend in args.backends:
        scan = scan_of(backend, device)
        for length in args.lengths:
            for step in args.steps:
                inputs = random_inputs(length, batch=1, dtype=torch.float32, **SIZES)
                inputs = of_steps(STEPS[step], inputs)
                exact = output_and_gradients(partial(mamba2_scan, backend="torch"), in_float64(inputs))
                inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
                relative = errors(output_and_gradients(scan, inputs), exact)
                name = max(relative, key=relative.get)
                worst = max(worst, relative[name])
                print(f"{backend}, length {length}, steps {step}: {relative[name]:.1e} ({name})", flush=True)
    return int(worst > args.tolerance)


def scan_of(backend: str, device: str) -> Callable[..., Tensor]:
    """The scan by one of `BACKENDS`; on a CPU, Triton's kernels are interpreted from now on."""
    if backend == "compiled":
        return torch.compile(partial(mamba2_scan, backend="torch"))
    if device == "cpu" and backend == "triton":
        from tests.support.triton.interpreter import interpret_on_cpu

        interpret_on_cpu()
    if device == "cpu" and backend == "mamba_ssm":
        from tests.support.triton import run_mamba_ssm

        run_mamba_ssm.stand_in_for_a_gpu()
        return run_mamba_ssm.package
    return partial(mamba2_scan, backend=backend)


if __name__ == "__main__":
    sys.exit(main())
