"""A denoising step against the public wiring: `python -m benchmarks.sample`.

Both wirings have the same weights, their answers are compared first, and they take turns in one process. On a
CPU: float32, the reference's scan a good one in PyTorch; on a GPU: bf16, the package mamba-ssm's kernels if
they are there. The first ratios are of single changes, each against what it replaced; the last are the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.support.measure import (
    Ratio,
    Times,
    device_name,
    keep,
    median_ms,
    peak_mib,
    ratio,
    take_turns,
)
from benchmarks.support.wirings import (
    CLIP,
    H200_FLOOR_S,
    IMAGES,
    Wirings,
    build,
    cast,
    check_same_numbers,
    counted_gflop,
    latents,
    products_by,
    wiring_parser,
)
from medsora.denoiser.linear import bf16_problem
from medsora.denoiser.mamba import frame_scans
from medsora.denoiser.plain import Mamba2
from medsora.runtime.malloc import keep_freed_memory
from medsora.sampling.prepared import PreparedDenoiser

Work = Callable[[], object]
TIMESTEPS = (999, 500, 3)
GRID = (8, 8)
_by_pytorch, _by_onednn = products_by(False), products_by(True)  # as decorators of a work
BF16, BF16_ERROR = "bf16 against float32", "bf16, relative error of the noise"


def main() -> None:
    """Measure, print and record by the command line's options."""
    on_gpu = torch.cuda.is_available()
    batches, rounds = ((1, 32), 20) if on_gpu else ((1, 2), 5)
    options = wiring_parser("sample", __doc__, batches, rounds).parse_args()
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    keep_freed_memory()
    wirings = build(options.preset, device, dtype)
    error = check_same_numbers(wirings, device, dtype)
    compiled = "compiled" if options.compile else "not compiled"
    print(f"{device_name(device)}, {dtype}, {options.preset}, both sides {compiled}")
    print(f"the reference scans by {wirings.scan}; both answer alike, to {error:.0e} of the largest value")
    if options.compile:
        wirings.compile()
    for batch in options.batches:
        values = measure(wirings, batch, device, dtype, options.rounds)
        if not options.dry:
            chosen = {"preset": options.preset, "compiled": options.compile}
            keep("sample", device, chosen | values, options.results)


@torch.no_grad()
def measure(
    wirings: Wirings, batch: int, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, object]:
    """Measured values of one batch size, printed as they come."""
    works = _whole_steps(wirings, batch, device, dtype)
    whole = take_turns(works, rounds, device)
    same = ratio(whole["reference"], whole["ours, same latents"])
    print(f"batch {batch}: a step, same latents {same}", flush=True)  # the rest may not end in time
    counts = counted_gflop(wirings, batch)
    values: dict[str, object] = {"batch": batch, "dtype": str(dtype), "scan": wirings.scan, "rounds": rounds}
    values["gflop"] = {name: round(count, 2) for name, count in counts.items()}
    values["ms"] = {name: round(median_ms(times), 3) for name, times in whole.items()}
    values["step, same latents"] = same
    values["video"] = ratio(whole["reference"], whole["ours, clip alone"])
    values["changes"] = changes(wirings, batch, device, dtype, rounds, whole)
    if device.type == "cpu":
        values |= bf16_against_float32(wirings, batch, rounds)
    if device.type == "cuda":
        step = median_ms(whole["ours, clip alone"]) / 1e3
        values["videos/s, 250 steps, not decoded"] = round(batch / (250 * step), 2)
        eager = _whole_steps(wirings, batch, device, dtype, record=False)  # a graph's memory is held for good
        values["peak MiB"] = {name: peak_mib(work) for name, work in eager.items()}
        if "H200" in device_name(device) and batch in H200_FLOOR_S:
            step = median_ms(whole["ours, same latents"]) / 1e3
            values["times the floor"] = round(step / H200_FLOOR_S[batch], 2)
    report(batch, values)
    return values


def _whole_steps(
    wirings: Wirings, batch: int, device: torch.device, dtype: torch.dtype, *, record: bool = True
) -> dict[str, Work]:
    """A denoising step as each side takes it while sampling; on a GPU ours is a CUDA graph if `record`."""
    six, four = (latents(batch, count, device, dtype) for count in (CLIP + IMAGES, CLIP))
    same = PreparedDenoiser(wirings.same, TIMESTEPS, num_images=IMAGES, record=record)
    alone = PreparedDenoiser(wirings.isolated, TIMESTEPS, record=record)
    return {
        "reference": partial(wirings.reference, *six),
        "ours, same latents": partial(same, *six),
        "ours, clip alone": partial(alone, *four),
    }


def changes(
    wirings: Wirings, batch: int, device: torch.device, dtype: torch.dtype, rounds: int, whole: Times
) -> dict[str, Ratio]:
    """Speed-ups of single changes, each against what it replaced: parts of a block, then whole steps."""
    model, block, public = wirings.same, wirings.same.blocks[0], wirings.reference.blocks[0]
    frames = CLIP + IMAGES
    x = torch.randn(batch, frames, GRID[0] * GRID[1], model.config.width).to(device, dtype)
    scans = frame_scans(frames, frames, GRID, block.spatial.variant, device)
    six = latents(batch, frames, device, dtype)
    recorded = PreparedDenoiser(model, TIMESTEPS, num_images=IMAGES)
    tabulated = PreparedDenoiser(model, TIMESTEPS, num_images=IMAGES, record=False)
    pairs: dict[str, tuple[Work, Work]] = {
        "attention: one q-k-v, one masked product": (
            partial(public.attention, x),
            _by_pytorch(partial(block.attention, x)),
        ),
        "space: one call for both axes and directions, summed before one projection": (
            partial(public.spatial, x, GRID),
            _by_pytorch(partial(block.spatial, x, scans)),
        ),
        "of that: two projections of sums instead of four": _projections(public.spatial.mamba, x),
        "time: no transposes": (partial(public.temporal, x), _by_pytorch(partial(block.temporal, x, scans))),
        "adaLN from a table": (partial(model, *six, IMAGES), partial(tabulated, *six)),
    }
    if device.type == "cpu":
        step = partial(tabulated, *six)
        pairs["products by oneDNN"] = (_by_pytorch(step), _by_onednn(step))
    else:
        pairs["a CUDA graph"] = (partial(tabulated, *six), partial(recorded, *six))
    ratios = {}
    for name, (before, after) in pairs.items():
        times = take_turns({"before": before, "after": after}, rounds, device)
        ratios[name] = ratio(times["before"], times["after"])
    ratios["isolated images: 4 latents instead of 6"] = ratio(
        whole["ours, same latents"], whole["ours, clip alone"]
    )
    return ratios


def bf16_against_float32(wirings: Wirings, batch: int, rounds: int) -> dict[str, Ratio | float]:
    """A sampling step on a CPU in bf16, A, Δ and D in float32: its speed, and the relative RMS error of ε."""
    device = torch.device("cpu")
    print(f"--dtype auto samples in {'float32: ' + problem if (problem := bf16_problem(device)) else 'bf16'}")
    half = cast(copy.deepcopy(wirings.isolated), torch.bfloat16)
    exact, rounded = (PreparedDenoiser(model, TIMESTEPS) for model in (wirings.isolated, half))
    z, t = latents(batch, CLIP, device, torch.float32)
    works = {"float32": partial(exact, z, t), "bf16": lambda: rounded(z.bfloat16(), t).float()}
    expected, actual = (work() for work in works.values())
    times = take_turns(works, rounds, device)
    return {
        BF16: ratio(times["float32"], times["bf16"]),
        BF16_ERROR: float((actual - expected).norm() / expected.norm()),
    }


def _projections(mamba: Mamba2, x: torch.Tensor) -> tuple[Work, Work]:
    """Project what the scans of both axes in both directions give and sum it, or the other way round."""
    outputs = x.new_empty(2, 2, *x.shape[:-1], mamba.norm.weight.numel()).normal_()  # axes, directions, ...
    return (
        lambda: [mamba.out_proj(there) + mamba.out_proj(back) for there, back in outputs],
        lambda: [mamba.out_proj(there + back) for there, back in outputs],
    )


def report(batch: int, values: dict[str, object]) -> None:
    """Print what `measure` found."""
    counts = values["gflop"]
    print(f"\nbatch {batch}: {counts['reference']:.1f} GFLOP the reference, {counts['ours']:.1f} ours")
    for name, milliseconds in values["ms"].items():
        print(f"  {name:22} {milliseconds:10.3f} ms")
    for name, change in values["changes"].items():
        print(f"  {name:75} {change}")
    print(f"  a step, same latents   {values['step, same latents']}")
    print(f"  a sampled video's cost {values['video']}")
    for name in ("times the floor", "videos/s, 250 steps, not decoded", "peak MiB", BF16, BF16_ERROR):
        if name in values:
            print(f"  {name}: {values[name]}")


if __name__ == "__main__":
    main()
