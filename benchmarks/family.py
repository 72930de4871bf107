"""MedSora beside its own attention and beside Endora, in one run: `python -m benchmarks.family`.

Systems of one size, at 16 to 128 frames of 128 to 512 pixels, batch 1: parameters, FLOPs, and measured turn
by turn (A B A B, medians with ranges) the time of a denoising step, of a training step and of a video, and
the peak of a training step in a process of its own. A video takes `--steps` denoising steps,
without decoding; `tiny` on a CPU, and every size on a GPU, really takes them if all rounds fit into
`--limit-s`; others are stated as steps times.

Rows that do not fit are "not run", with the estimate: bytes by the count of `benchmarks.cost`, seconds by
FLOPs at the rate of the system's point before. Endora is there twice: as published, with one latent per
frame and joint image, and on the causal VAE's latents, of which there are a quarter; so the part of the gap
that compression in time explains, not Mamba, shows. Where Mamba becomes cheaper than attention is found by
counting, over ever larger frames.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from benchmarks.cost import (
    BYTES_PER_PARAMETER,
    GIB,
    GIGA,
    MEGA,
    Case,
    Cost,
    both_steps,
    check_points,
    counted,
    draw,
    in_a_fresh_process,
    measure,
)
from benchmarks.page import PAGE as PERFORMANCE
from benchmarks.support.measure import RESULTS, Times, device_name, keep, take_turns, warm_ups
from medsora.errors import BadInput, check_limits
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_between_marks
from medsora.runtime.malloc import keep_freed_memory
from medsora.runtime.markdown import markdown_table
from medsora.vae import frames_to_latents

PAGE = PERFORMANCE.with_name("comparison.md")
PICTURE = PAGE.parent / "images" / "family.svg"
BEGIN = "<!-- python -m benchmarks.family -->"
ATTENTION = {"spatial": "attention", "temporal": "attention"}
MEDSORA, CONTROL, PUBLISHED, CAUSAL = "MedSora", "MedSora, attention", "Endora", "Endora, causal latents"
SIZES = ("tiny", "S", "B", "L")
JOINT_IMAGES = 8  # per training step, in both papers
CROSSING_FRAMES = 16
CROSSING_SIZES = (64, 128, 256, 512, 1024, 2048)
PIXELS_PER_TOKEN = 16  # a side: 8 pixels per latent, 2 latents per patch
FORWARDS_OF_TRAINING = 3  # a backward costs about two forwards
HEAD = (
    "system",
    "frames",
    "pixels",
    "parameters, M",
    "GFLOPs, step",
    "GFLOPs, training forward",
    "peak of training, GiB",
    "denoising step, s",
    "training step, s",
    "video, s",
)


@dataclass(frozen=True)
class System:
    """One row of the family: a preset, its VAE's latents and its switches."""

    name: str
    preset: str
    per_frame: bool = False
    overrides: tuple[tuple[str, str], ...] = ()

    def case(self, frames: int, size: int) -> Case:
        """Return one point."""
        images = JOINT_IMAGES if self.per_frame else frames_to_latents(JOINT_IMAGES)
        return Case(self.preset, frames, size, images, self.per_frame, dict(self.overrides))

    def counted(self, frames: int, size: int) -> Cost:
        """Count one point; see `benchmarks.cost.counted`."""
        return replace(counted(self.case(frames, size)), preset=self.name)


@dataclass(frozen=True)
class Point:
    """A system at one clip: what was counted; seconds of each round, or why nothing was run."""

    cost: Cost
    size: int
    times: dict[str, list[float]]
    video_s: list[float]
    peak_bytes: int | None = None
    not_run: str = ""

    def row(self) -> list[str]:
        """Return the table's cells."""
        cost = self.cost
        cells = [cost.preset, f"{cost.frames}", f"{self.size}", f"{cost.parameters / MEGA:.2f}"]
        cells += [f"{cost.sampling_flops / GIGA:.1f}", f"{cost.training_flops / GIGA:.1f}"]
        if self.not_run:
            return [*cells, f"not run: {self.not_run}", "–", "–", "–"]
        peak = f"{self.peak_bytes / GIB:.2f}" if self.peak_bytes else "–"
        return [*cells, peak, *map(_median, (self.times["sample"], self.times["train"], self.video_s))]


def family(size: str) -> list[System]:
    """Return the systems of one size."""
    endora = f"endora-{size}"
    return [
        System(MEDSORA, size),
        System(CONTROL, size, overrides=tuple(ATTENTION.items())),
        System(PUBLISHED, endora, per_frame=True),
        System(CAUSAL, endora),
    ]


def main() -> None:
    """Count, measure and print by the command line's options; draw the table and write it into the page."""
    options = _options()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    keep_freed_memory()
    systems = family(options.model)
    shapes = [(frames, size) for size in options.size for frames in options.frames]
    title = (
        f"{options.model}, batch 1, {JOINT_IMAGES} joint images in training, float32, torch "
        f"{torch.__version__}, {device_name(device)}; a video is {options.steps} denoising steps."
    )
    if options.dry_run:
        print(title)
        for frames, size in shapes:
            print(*(f"{system.name} at {frames} frames of {size} px" for system in systems), sep="\n")
        return
    points: list[Point] = []
    flops_per_s: dict[str, float] = {}
    for frames, size in shapes:
        for point in run_point(systems, frames, size, options, device, flops_per_s):
            points.append(point)
            print(f"| {' | '.join(point.row())} |", flush=True)
    lines = [title, "", *markdown_table(HEAD, [point.row() for point in points], 1), ""]
    lines += [*(f"- {sentence}" for sentence in conclusions(points, crossing(options.model)))]
    print("", *lines, sep="\n")
    if not options.dry:
        values = {"model": options.model, "rows": [point.row() for point in points]}
        keep("family", device, values, options.results)
    smallest = [point.cost for point in points if point.size == min(options.size)]
    if options.plot:
        draw(options.plot, smallest)
    if options.page:
        draw(PICTURE, smallest)
        write_between_marks(PAGE, BEGIN, ["", *lines, ""])


def run_point(
    systems: Sequence[System],
    frames: int,
    size: int,
    options: argparse.Namespace,
    device: torch.device,
    flops_per_s: dict[str, float],
) -> list[Point]:
    """Measure all systems of one clip in turns, but for those that do not fit; update their rates."""
    costs = {system: system.counted(frames, size) for system in systems}
    refused: dict[System, str] = {}
    held = activations = 0  # bytes of the models that take turns; of the one whose turn it is
    for system, cost in costs.items():
        beside = held + max(0, activations - cost.activation_bytes)
        refused[system] = too_large(cost, options, flops_per_s, device, beside)
        if not refused[system]:
            held += BYTES_PER_PARAMETER * cost.parameters
            activations = max(activations, cost.activation_bytes)
    fitting = [system for system in systems if not refused[system]]
    times, videos = _timed(fitting, frames, size, options, device)
    points = []
    for system, cost in costs.items():
        if refused[system]:
            points.append(Point(cost, size, {}, [], not_run=refused[system]))
            continue
        seconds_by_work = {name: times[f"{system.name}/{name}"] for name in ("sample", "train")}
        flops_per_s[system.name] = cost.sampling_flops / statistics.median(seconds_by_work["sample"])
        alone = in_a_fresh_process(measure, system.case(frames, size), 1)
        points.append(Point(cost, size, seconds_by_work, videos[system.name], alone and alone.peak_bytes))
    return points


def _timed(
    systems: Sequence[System], frames: int, size: int, options: argparse.Namespace, device: torch.device
) -> tuple[Times, Times]:
    """Return the seconds of each system's steps, and those of its videos, round by round."""
    works: dict[str, Callable[[], None]] = {}
    for system in systems:
        train, sample = both_steps(system.case(frames, size))
        works |= {f"{system.name}/sample": sample, f"{system.name}/train": train}
    times, videos = take_turns(works, options.rounds, device), {}
    for system in systems:
        name = f"{system.name}/sample"
        videos[system.name] = [options.steps * seconds for seconds in times[name]]
        whole_s = (options.rounds + warm_ups(device)) * statistics.median(videos[system.name])
        if (device.type == "cuda" or system.preset.endswith("tiny")) and whole_s <= options.limit_s:
            videos[system.name] = _whole_videos(works[name], options, device)
    return times, videos


def _whole_videos(
    sample: Callable[[], None], options: argparse.Namespace, device: torch.device
) -> list[float]:
    """Return the seconds of all of a video's denoising steps, once for each round."""

    def video() -> None:
        for _ in range(options.steps):
            sample()

    return take_turns({"video": video}, options.rounds, device)["video"]


def too_large(
    cost: Cost,
    options: argparse.Namespace,
    flops_per_s: dict[str, float],
    device: torch.device,
    beside: int = 0,
) -> str:
    """Return why a point is not run, with the estimate; empty if it fits `beside` the others' bytes."""
    free, needed = free_bytes(device), beside + cost.peak_bytes
    if needed > free:
        others = " with the others" if beside else ""
        return f"about {needed / GIB:.1f} GiB{others}, {free / GIB:.1f} are free"
    if rate := flops_per_s.get(cost.preset):
        of_round = cost.sampling_flops + FORWARDS_OF_TRAINING * cost.training_flops
        seconds = (options.rounds + warm_ups(device)) * of_round / rate
        if seconds > options.limit_s:
            return f"about {seconds:.0f} s, --limit-s is {options.limit_s:g}"
    return ""


def free_bytes(device: torch.device) -> int:
    """Return what a model may take of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def crossing(model: str, sizes: Sequence[int] = CROSSING_SIZES) -> float | None:
    """Return the tokens per frame from which a step of MedSora takes fewer FLOPs than with attention.

    Between two counted frame sizes the difference is taken as linear; None if attention stays cheaper.
    """
    mamba, control, *_ = family(model)
    before: tuple[float, float] | None = None
    for size in sizes:
        flops = [system.counted(CROSSING_FRAMES, size).sampling_flops for system in (mamba, control)]
        tokens, saved = (size / PIXELS_PER_TOKEN) ** 2, flops[1] - flops[0]
        if saved > 0:
            if before is None:
                return tokens
            share = -before[1] / (saved - before[1])
            return before[0] + share * (tokens - before[0])
        before = (tokens, saved)
    return None


def conclusions(points: Sequence[Point], tokens: float | None) -> list[str]:
    """Return the table's effects of Mamba and of compression, by FLOPs and by measured time."""
    largest = max(CROSSING_SIZES) // PIXELS_PER_TOKEN
    sentences = [
        f"By FLOPs of a step of {CROSSING_FRAMES} frames, Mamba is cheaper than attention from about "
        f"{tokens:.0f} tokens per frame on."
        if tokens
        else f"By FLOPs, attention stays cheaper than Mamba up to {largest**2} tokens per frame."
    ]
    for frames, size in dict.fromkeys((point.cost.frames, point.size) for point in points):
        by_preset = {p.cost.preset: p for p in points if (p.cost.frames, p.size) == (frames, size)}
        flops = {name: point.cost.sampling_flops for name, point in by_preset.items()}
        seconds = {
            name: statistics.median(point.times["sample"]) for name, point in by_preset.items() if point.times
        }
        for what, values in {"FLOPs": flops, "seconds": seconds}.items():
            if {MEDSORA, PUBLISHED, CAUSAL} <= values.keys():
                sentences.append(f"{frames} frames of {size} px, {what} of a step: {_gap(values)}")
    return sentences


def _gap(values: dict[str, float]) -> str:
    whole = values[PUBLISHED] / values[MEDSORA]
    compression = values[PUBLISHED] / values[CAUSAL]
    share = ""
    if whole > 1 and compression > 1:
        share = f", {100 * math.log(compression) / math.log(whole):.0f} % of the gap (logarithms)"
    return (
        f"Endora as published takes {whole:.2f} times MedSora's; the causal latents alone make it "
        f"{compression:.2f} times cheaper{share}."
    )


def _median(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.4g} ({min(times):.4g}–{max(times):.4g})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="tiny", choices=SIZES, help="size of all systems (default: %(default)s)")
    add("--frames", nargs="+", type=int, default=[16, 32, 64, 128], metavar="F", help="(default: 16 to 128)")
    add("--size", nargs="+", type=int, default=[128, 256, 512], metavar="PX", help="(default: 128 256 512)")
    add("--rounds", type=int, default=5, metavar="N", help="turns of every system (default: %(default)s)")
    add("--steps", type=int, default=250, metavar="N", help="steps of a video (default: %(default)s)")
    add("--limit-s", type=float, default=300.0, metavar="S", help="longest point (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draw the smallest frames' costs: .svg or .png")
    add("--page", action="store_true", help=f"write table and plot into docs/{PAGE.name}")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    add("--dry", action="store_true", help="print, but keep nothing")
    add("--dry-run", action="store_true", help="print which points would be counted and measured")
    options = parser.parse_args()
    check_limits(options, {"rounds": (1, math.inf), "steps": (1, math.inf)})
    if not 0 < options.limit_s < math.inf:
        raise BadInput(f"--limit-s is {options.limit_s}, must be greater than 0.")
    check_points(options.frames, options.size, options.plot)
    return options


if __name__ == "__main__":
    exit_with_status(main)
