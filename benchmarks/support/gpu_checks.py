"""Checks and times of our kernels at preset B's sizes: kernel by kernel, a whole step, and its profile."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.support.bare_machine import make_do
from benchmarks.support.measure import device_name, keep
from benchmarks.support.scan_inputs import errors, in_float64, output_and_gradients, random_inputs

Key = TypeVar("Key")
BATCHES = (1, 32)
TOLERANCE = 2e-2  # largest error of bf16, over the largest value
TIMES_PLAIN = 2.5  # or so many times the error of PyTorch's operators in bf16
STEP_TOLERANCE = {"graph against eager": 1e-2, "graph against operators": 5e-2}  # in bf16
REPLAYS = 20
OPERATIONS = ("norms", "attention", "gates", "temporal branch", "spatial scan", "temporal scan")


def in_processes(
    jobs: Mapping[Key, Callable[[], object]], seconds: float, device: torch.device
) -> Iterator[tuple[Key, object]]:
    """Yield each job's name and what it returns or raises, as they end; those not in time are left out.

    They run in processes of their own, so that kernels are compiled side by side.
    """
    workers = min(len(jobs), max(1, (os.cpu_count() or 2) - 2)) if device.type == "cuda" else 1
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=make_do)
    try:
        running = {pool.submit(job): name for name, job in jobs.items()}
        for job in as_completed(running, timeout=seconds):
            yield running[job], job.exception() or job.result()
    except TimeoutError:
        print("the rest was not checked in time")
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def check_kernels(device: torch.device, results: Path, *, quick: bool, seconds: float) -> int:
    """Every kernel in bf16 against float64, twice and in memory full of NaN; 1 if one is wrong or missing."""
    from medsora.kernels import backends

    if device.type == "cuda" and (reason := backends()["triton"]):
        print(f"no kernel of ours runs here: {reason}")
        return 1
    preset, batches = ("tiny", (1,)) if quick else ("B", BATCHES)
    jobs = {
        (name, batch): partial(operation_errors, name, preset, batch, device.type)
        for batch in batches
        for name in OPERATIONS
    }
    wrong = set(jobs)
    for (name, batch), outcome in in_processes(jobs, seconds, device):
        if isinstance(outcome, BaseException):
            print(
                f"{name}, batch {batch}: cannot be computed: {str(outcome).strip()[-300:] or repr(outcome)}"
            )
            continue
        if good := outcome["same twice"] and all(
            e <= outcome["limits"][k] for k, e in outcome["errors"].items()
        ):
            wrong.discard((name, batch))
        values = " ".join(f"{key} {error:.1e}" for key, error in outcome["errors"].items())
        twice = "" if outcome["same twice"] else ", NOT THE SAME TWICE"
        print(f"{'ok ' if good else 'BAD'} {name}, batch {batch}: {values}{twice}")
        keep("kernel", device, {"kernel": name, "batch": batch, "good": good} | outcome, results)
    print(f"wrong or missing: {sorted(wrong) or 'none'}")
    return int(bool(wrong))


def operation_errors(name: str, preset: str, batch: int, device: str) -> dict[str, object]:
    """Largest relative errors of an operation's tensors in bf16, and whether a second run gives the same."""
    from medsora.kernels import backends

    ours = "torch" if backends()["triton"] else "triton"
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    actual, again, plain, exact = (
        _operation(name, preset, batch, device, backend, dtype)
        for backend, dtype in (
            (ours, torch.bfloat16),
            (ours, torch.bfloat16),
            ("torch", torch.bfloat16),
            ("torch", torch.float64),
        )
    )
    allowed = {key: max(TOLERANCE, TIMES_PLAIN * error) for key, error in errors(plain, exact).items()}
    same = all(torch.equal(actual[key], again[key]) for key in actual)
    return {"errors": errors(actual, exact), "limits": allowed, "same twice": same}


def _operation(
    name: str, preset: str, batch: int, device: str, backend: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors of an operation of a block by a backend, from the same bf16 numbers in every dtype."""
    from benchmarks.support.wirings import CLIP, IMAGES, SIDE
    from medsora import MedSora
    from medsora.denoiser.mamba import frame_scans
    from medsora.kernels import block_steps, mamba2_scan

    torch.manual_seed(0)
    model = MedSora.from_preset(preset, depth=1, mixing="mixed", dropout=0.0, backend=backend).eval()
    block, config, frames = model.blocks[0].to(torch.bfloat16).to(device, dtype), model.config, CLIP + IMAGES
    side = SIDE // config.patch
    scans = frame_scans(frames, frames, (side, side), 0, torch.device(device))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().to(device, dtype)

    tokens = (batch, frames, side * side, config.width)
    if name.endswith(" scan"):
        d_inner = config.expand * config.width
        inputs = random_inputs(
            frames * side * side,
            batch=batch,
            heads=d_inner // config.headdim,
            headdim=config.headdim,
            d_state=config.d_state,
            dtype=torch.bfloat16,
        )
        inputs = in_float64(inputs) if dtype == torch.float64 else inputs
        inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
        inputs["orders"] = scans[0].temporal if name == "temporal scan" else scans[0].spatial[0]
        return output_and_gradients(partial(mamba2_scan, backend=backend), inputs)
    with torch.no_grad():
        if name == "attention":
            return {name: block.attention(draw(*tokens))}
        if name == "temporal branch":
            return {name: block.temporal(draw(*tokens), scans)}
        if name == "gates":
            gates = block.spatial.gate_height, block.spatial.gate_width
            return {name: block_steps.gates(draw(2, *tokens), *gates, backend)}
        x, branch = draw(*tokens), draw(*tokens)
        gate, shift, scale = (draw(batch, 1, 1, config.width) for _ in range(3))
        shares = torch.rand(4, batch, frames * side * side).to(
            device, torch.promote_types(dtype, torch.float32)
        )
        total = block_steps.Residual(x, branch, gate, shares)
        added, normed = block_steps.add_norm(total, shift, scale, block.spatial_norm, backend)
        alone = block_steps.add_norm(x, shift, scale, block.spatial_norm, backend)[1]
        return {"sum": added, "norm of the sum": normed, "norm": alone}


@torch.no_grad()
def step(device: torch.device, results: Path, *, quick: bool) -> int:
    """A denoising step as a CUDA graph, without one, and by PyTorch's operators: differences and times."""
    from benchmarks.support.wirings import H200_FLOOR_S

    failed = False
    for batch in (1,) if quick else BATCHES:
        works, recorded = _steps(batch, device, quick=quick)
        answers = {name: work().float() for name, work in works.items()}
        values: dict[str, object] = {"batch": batch, "CUDA graph": recorded()}
        for other, name in (("eager", "graph against eager"), ("operators", "graph against operators")):
            values[name] = float((answers["graph"] - answers[other]).norm() / answers[other].norm())
            failed = failed or not values[name] <= STEP_TOLERANCE[name]
        failed = failed or (device.type == "cuda" and not values["CUDA graph"])
        values["ms"] = {name: round(1e3 * _seconds_in_a_row(work, device), 4) for name, work in works.items()}
        if "H200" in device_name(device) and batch in H200_FLOOR_S:
            values["times the floor"] = round(values["ms"]["graph"] / 1e3 / H200_FLOOR_S[batch], 2)
        print(values)
        keep("step", device, values, results)
    return int(failed)


def _steps(
    batch: int, device: torch.device, *, quick: bool
) -> tuple[dict[str, Callable[[], Tensor]], Callable[[], bool]]:
    """Return a step of the same weights in three ways, and whether the first has been recorded."""
    from benchmarks.support.wirings import CLIP, IMAGES, cast, latents
    from medsora import MedSora
    from medsora.sampling.prepared import PreparedDenoiser

    torch.manual_seed(0)
    settings = {"mixing": "mixed", "dropout": 0.0}
    ours, plain = (
        MedSora.from_preset("tiny" if quick else "B", backend=backend, **settings).eval()
        for backend in ("auto", "torch")
    )
    for parameter in ours.parameters():
        if not parameter.any():  # adaLN-zero's, which would leave nothing to compare
            parameter.normal_(std=0.02)
    plain.load_state_dict(ours.state_dict())
    ours, plain = (cast(model, torch.bfloat16).to(device) for model in (ours, plain))
    graph, eager, operators = (
        PreparedDenoiser(model, (500,), num_images=IMAGES, record=record)
        for model, record in ((ours, True), (ours, False), (plain, False))
    )
    six = latents(batch, CLIP + IMAGES, device, torch.bfloat16)
    works = {"graph": graph, "eager": eager, "operators": operators}
    return {name: partial(work, *six) for name, work in works.items()}, lambda: bool(graph._recordings)


def _seconds_in_a_row(work: Callable[[], object], device: torch.device) -> float:
    """Mean duration of a call among `REPLAYS` in a row, after a warm-up."""
    count = REPLAYS if device.type == "cuda" else 2
    for _ in range(3 if device.type == "cuda" else 0):
        work()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - start) / count
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(count):
        work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / count


@torch.no_grad()
def profile(device: torch.device, results: Path, *, quick: bool) -> int:
    """Microseconds of a step by kernel, printed and kept."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    for batch in (1,) if quick else BATCHES:
        works, _ = _steps(batch, device, quick=quick)
        work, count = works["graph"], 5 if on_gpu else 1
        for _ in range(3 if on_gpu else 1):
            work()
        with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiler:
            for _ in range(count):
                work()
            if on_gpu:
                torch.cuda.synchronize()
        spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, spent))
        kernels = {
            row.key[:90]: {"us": round(getattr(row, spent) / count, 1), "launches": row.count / count}
            for row in rows
            if getattr(row, spent)
        }
        print(f"batch {batch}: {sum(row['us'] for row in kernels.values()):.0f} us of kernels in a step")
        for name, row in list(kernels.items())[:20]:
            print(f"  {row['us']:9.1f} us {row['launches']:6.1f} launches  {name}")
        keep("profile", device, {"batch": batch, "kernels": kernels}, results)
    return 0
