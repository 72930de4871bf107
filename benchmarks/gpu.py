"""Every value that needs a GPU, in two calls of minutes: `python -m benchmarks.gpu`.

It needs PyTorch, Triton, einops and local-attention (docs/gpu-run.md: what to bring along). Each part is a
process of its own with a limit of its own, so that one that fails or hangs costs no other part its values.
Kernels are compiled first, for all parts at once: that takes longer than measuring, and disturbs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.support import gpu_checks
from benchmarks.support.bare_machine import make_do
from benchmarks.support.measure import RESULTS, device_name, keep
from benchmarks.support.scan_inputs import errors, output_and_gradients, random_inputs

# The most valuable parts first, with the most seconds of each. The first of a call only compares numbers:
# meanwhile, the kernels of the others are compiled and tuned.
CHECKS = {"kernels": 150, "check": 120}
CALLS = {
    1: {"kernels": CHECKS["kernels"], "step": 60, "sample": 150, "profile": 50},
    2: {"check": CHECKS["check"], "train": 80, "growth": 30, "scan": 60, "compiled": 50},
}
COMPILED = ("sample", "train", "growth", "scan", "compiled")  # others' kernels are those that are checked
RESERVE_S = 30  # part of a check's limit that its start and its last lines take
LENGTHS = (1, 2, 31, 32, 33, 47, 48, 63, 64, 65, 300)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
STEP_TOLERANCE = 1e-3  # relative error of a denoiser's outputs
STEP = "step"
QUICK = ["--preset", "tiny", "--rounds", "2", "--batches", "1"]  # a short trial of the parts, on a CPU too


def main() -> int:
    """Run the selected parts in turn; exit status 1 if one of them failed."""
    parts = tuple(name for call in CALLS.values() for name in call)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--call", type=int, choices=CALLS, help="one half: at most 410 or 340 s")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every part run here?")
    parser.add_argument("--only", choices=parts, help=argparse.SUPPRESS)  # what a part's process does
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)  # and keeps nothing of
    options = parser.parse_args()
    if options.only:
        return _run_part(options.only, options.results, quick=options.quick, compiling=options.compile)
    if not torch.cuda.is_available() and not options.quick:
        print("there is no GPU here; --quick tries the parts out on a CPU", file=sys.stderr)
        return 2

    def part(name: str, *more: str) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, "--results", str(options.results)]
        return [*command, *more, *["--quick"] * options.quick]

    outcomes: dict[str, bool] = {}
    for call in [options.call] if options.call else CALLS:
        limits = {name: limit for name, limit in CALLS[call].items() if name in options.parts}
        first = {name: part(name) for name in limits if name in CHECKS}
        if not options.quick:
            first |= {f"{name}: its kernels": part(name, "--compile") for name in limits if name in COMPILED}
        compiled = run_together(first, max((CHECKS[name] for name in limits if name in CHECKS), default=100))
        outcomes |= {name: done for name, done in compiled.items() if name in CHECKS}
        for name in limits:
            if name not in CHECKS:
                outcomes |= run_together({name: part(name)}, limits[name])
    failed = [name for name, done in outcomes.items() if not done]
    print(f"\nfigures are in {options.results}" + (f"; incomplete: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_together(commands: dict[str, list[str]], limit_s: float) -> dict[str, bool]:
    """Run commands side by side, killed with all their processes at the limit; whether each did its work."""
    if commands:
        print(f"\n===== {', '.join(commands)}: at most {limit_s:.0f} s", flush=True)
    start = time.monotonic()
    # What is tuned while compiling stays tuned, and what a part printed before it is killed is not lost.
    environment = os.environ | {"TRITON_CACHE_AUTOTUNING": "1", "PYTHONUNBUFFERED": "1"}
    running = {
        name: subprocess.Popen(command, env=environment, start_new_session=True)
        for name, command in commands.items()
    }
    outcomes = {}
    for name, process in running.items():
        try:
            status = process.wait(max(0, start + limit_s - time.monotonic()))
            outcome = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = "ran out of time"
        print(f"===== {name} {outcome} after {time.monotonic() - start:.0f} s", flush=True)
        outcomes[name] = outcome == "done"
    return outcomes


def _run_part(part: str, results: Path, *, quick: bool, compiling: bool) -> int:
    """One part, in this process; `compiling`: as few repetitions as possible, nothing recorded."""
    if missing := make_do():
        print(f"not here, done without: {', '.join(missing)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if part in CHECKS:
        seconds = CHECKS[part] - RESERVE_S
        if part == "kernels":
            return gpu_checks.check_kernels(device, results, quick=quick, seconds=seconds)
        return check(device, results, LENGTHS[:3] if quick else LENGTHS, seconds=seconds)
    if part in ("step", "profile"):
        return getattr(gpu_checks, part)(device, results, quick=quick)
    kept, tiny = ["--results", str(results)] + ["--dry"] * compiling, QUICK if quick else []
    rounds = ["--rounds", "1"] if compiling else []
    arguments = {
        "sample": [*kept, *(tiny or ["--batches", "1", "32", *rounds])],
        "train": ["--parts", "wiring", *kept, *(tiny or ["--batches", "1", "16", *rounds])],
        "growth": [*kept, *tiny[:2]],
        "compiled": ["--compile", *kept, *(tiny or ["--batches", "1", "--rounds", "5"])],
        "scan": ["--seconds", "0.001" if compiling else "0.05", *["--lengths=48", "--batches=1"] * quick],
    }
    sys.argv = [part, *arguments[part]]
    modules = {"scan": "kernels", "compiled": "sample"}
    module = import_module(f"benchmarks.{modules.get(part, part)}")
    if part != "scan":
        module.main()
        return 0
    for row in module.rows():  # each kept as it comes: the time may end before they do
        if not compiling:
            keep("scan of every backend", device, row, results)
    return 0


def check(device: torch.device, results: Path, lengths: tuple[int, ...], *, seconds: float) -> int:
    """Outputs and every gradient of the Triton scan against the recurrence, on this device; a step as well.

    What is found in time is kept, whatever the rest does.
    """
    from medsora.kernels import backends

    reasons = {name: reason for name, reason in backends().items() if reason}
    print(f"{device_name(device)}, torch {torch.__version__}; not here: {reasons or 'nothing'}")
    backend = "torch" if "triton" in reasons else "triton"
    cases = [(length, dtype) for length in sorted(lengths, reverse=True) for dtype in TOLERANCE]
    worst, missing, failed, step = dict.fromkeys(map(str, TOLERANCE), 0.0), set(cases), False, None
    jobs = {} if backend == "torch" else {STEP: partial(step_error, device.type)}
    jobs |= {case: partial(_largest_error, backend, device.type, *case) for case in cases}
    for case, error in gpu_checks.in_processes(jobs, seconds, device):
        name = "a denoising step" if case == STEP else f"{backend}, {case[1]}, length {case[0]}"
        if isinstance(error, BaseException):
            print(f"{name}: cannot be computed: {error}")
            continue
        most = STEP_TOLERANCE if case == STEP else TOLERANCE[case[1]]
        if not error <= most:
            failed = True
            print(f"{name}: error {error:.1e} exceeds {most:.0e}")
        if case == STEP:
            step = error
            print(f"a denoising step by our kernels against PyTorch's operators: {step:.1e}")
        else:
            missing.discard(case)
            worst[str(case[1])] = max(worst[str(case[1])], error)
    if missing:
        print(
            "no values of "
            + ", ".join(f"{length} in {dtype}" for length, dtype in cases if (length, dtype) in missing)
        )
    failed = failed or (STEP in jobs and step is None)
    values = {"backend": backend, "checked": len(cases) - len(missing), "of": len(cases), "step": step}
    keep("check", device, values | {"largest relative error": worst}, results)
    print(f"{backend} against the recurrence, outputs and gradients, largest relative errors: {worst}")
    return int(failed or bool(missing))


@torch.no_grad()
def step_error(device: str) -> float:
    """Largest relative error of a small denoiser's step, our kernels against PyTorch's operators, float32."""
    from medsora import MedSora

    ours, plain = (
        MedSora.from_preset("tiny", dropout=0.0, backend=backend).eval() for backend in ("auto", "torch")
    )
    for parameter in ours.parameters():
        if not parameter.any():  # adaLN-zero's, which would leave nothing to compare
            parameter.normal_(std=0.02)
    plain.load_state_dict(ours.state_dict())
    z, t = torch.randn(2, 6, 16, 16, 16).to(device), torch.tensor([999, 3], device=device)
    actual, expected = (model.to(device)(z, t, num_images=2).eps for model in (ours, plain))
    return errors({"eps": actual}, {"eps": expected})["eps"]


def _largest_error(backend: str, device: str, length: int, dtype: torch.dtype) -> float:
    """Largest relative error of one length's outputs and gradients against the recurrence."""
    from medsora.kernels import mamba2_scan

    inputs = random_inputs(length, batch=2, heads=2, headdim=64, d_state=128, orders=2, dtype=dtype)
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    actual, expected = (
        output_and_gradients(partial(mamba2_scan, backend=name), inputs) for name in (backend, "reference")
    )
    return max(errors(actual, expected).values())


if __name__ == "__main__":
    sys.exit(main())
