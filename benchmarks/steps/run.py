"""How few sampling steps give the same videos: `python -m benchmarks.steps MODEL`.

Every sampler begins with the same noise as DDIM with 1,000 steps, the reference. Per sampler and number of
steps: the denoiser's evaluations, the latents' RMSE and the frames' PSNR against the reference, and the
evaluation's distances between the samples and clips that the model was not trained on.

OUT/reference/   the reference's latents and frames, a file per seed
OUT/points.json  what was measured, and of which model; the same command resumes
OUT/steps.md, steps.csv, steps.svg  the table, and PSNR over evaluations
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, SchedulerMixin
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsora.config.choices import SAMPLERS, WEIGHT_FREE
from medsora.data.reading.pixels import video_to_frames
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.evaluation.conditional.command import trained_phantom
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED, phantom_folder
from medsora.evaluation.features.clip_set import choose_clips
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import Measure
from medsora.evaluation.metrics.registry import build_measures
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.report.warnings import require_enough
from medsora.html_report import save_figure
from medsora.runtime.files import write_between_marks, write_json, write_text, written_beside
from medsora.runtime.malloc import keep_freed_memory
from medsora.runtime.markdown import markdown_table
from medsora.runtime.processes import join_group
from medsora.runtime.progress_bar import progress_bar
from medsora.sampler import (
    NOISE_SCHEDULE,
    SCHEDULE,
    Callback,
    dense_timesteps,
    make_scheduler,
    noise_like,
    sample,
    trailing_timesteps,
    unipc_scheduler,
    with_timesteps,
)
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.prepared import PreparedDenoiser
from medsora.saved.find import MEDSORA, ModelFolder, find_model
from medsora.vae.quality import psnr

REFERENCE_STEPS = 1000
DDIM_STEPS = 250  # the default, whose PSNR the goals are measured against
DEFAULT_STEPS = (5, 6, 8, 10, 15, 20, 25, 30, 50, 100, DDIM_STEPS)
MAX_LOSS_DB, MAX_EVALUATIONS_OF_DDIM = 1.0, 30
INVISIBLE_DB, MAX_EVALUATIONS_INVISIBLE = 45.0, 8
MAX_VIDEOS = 1024  # seeds' features and the reference's files stay small
PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
PICTURE = PAGE.parent / "images" / "steps.svg"
BEGIN = "<!-- python -m benchmarks.steps -->"
DISTANCES = ("untrained_pyramid_distance", "flow_magnitude_distance", "colour_distance", "sharpness_distance")


def _trailing(kind: type[SchedulerMixin], steps: int, **settings: Any) -> SchedulerMixin:
    """Diffusers' own trailing timesteps."""
    scheduler = kind(**settings)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _dense(kind: type[SchedulerMixin], steps: int, **settings: Any) -> SchedulerMixin:
    """A multistep solver over the timesteps that UniPC takes."""
    return with_timesteps(kind(**settings), dense_timesteps(steps))


DPMPP = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
# Deterministic samplers of diffusers that --sampler does not name: (steps, noise schedule) -> scheduler.
OTHERS: dict[str, Callable[..., SchedulerMixin]] = {
    "dpmpp-dense": partial(_dense, DPMSolverMultistepScheduler, **DPMPP),
    "dpmpp-3-dense": partial(_dense, DPMSolverMultistepScheduler, **DPMPP, solver_order=3),
    "dpm-noise": partial(
        _trailing, DPMSolverMultistepScheduler, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "unipc-trailing": partial(unipc_scheduler, power=1.0),
    "unipc-1.5": partial(unipc_scheduler, power=1.5),
    "unipc-2.5": partial(unipc_scheduler, power=2.5),
    "unipc-3": partial(unipc_scheduler, solver_order=3),
    "unipc-3-2.5": partial(unipc_scheduler, power=2.5, solver_order=3),
    "euler": partial(_trailing, EulerDiscreteScheduler),
    "pndm": partial(_trailing, PNDMScheduler, skip_prk_steps=True),
}
CHOICES = (*(name for name in SAMPLERS if name != "ddpm"), *OTHERS)  # ddpm draws noise at every step


@dataclass(frozen=True)
class Point:
    """A sampler at a number of steps, compared with the reference; distances are by `DISTANCES`."""

    sampler: str
    steps: int
    evaluations: int
    rmse: float
    psnr_db: float
    distances: dict[str, float]

    def row(self) -> list[str]:
        """Return the table's cells."""
        distances = (number_text(self.distances.get(name)) for name in DISTANCES)
        numbers = (f"{self.steps}", f"{self.evaluations}", f"{self.rmse:.5f}", f"{self.psnr_db:.2f}")
        return [self.sampler, *numbers, *distances]


HEAD = (
    "sampler",
    "steps",
    "evaluations",
    "latents, RMSE",
    "frames, PSNR in dB",
    *(name.replace("_", " ") for name in DISTANCES),
)


def main() -> None:
    """Measure what the command line names and is not measured yet; write the table and the plot."""
    options = _options()
    model = find_model(options.model, raw=options.raw)
    if model.kind != MEDSORA:
        raise BadInput(
            f"{options.model} is for {model.kind}, which has no sampling steps; take a MedSora model."
        )
    seeds = range(options.seed, options.seed + options.videos)
    identity = {
        "weights_sha256": model.digests(),
        "geometry": {key: model.geometry[key] for key in ("frames", "size")},
        "seeds": [seeds.start, seeds.stop],
        "real": None if options.real is None else str(options.real),
    }
    points = _read_points(options.out / "points.json", identity)
    points_due = [(name, steps) for name in options.samplers for steps in options.steps]
    missing = [key for key in points_due if key not in points]
    if options.dry_run:
        print(*plan(missing, len(points_due), seeds, options.out), sep="\n")
        return
    keep_freed_memory()
    with bad_input_from_errors():
        _reference_file(options.out, 0).parent.mkdir(parents=True, exist_ok=True)
        pipeline = MedSoraPipeline.from_folder(model).to(join_group().device)
        _write_points(options.out, identity, points.values())  # before the reference, which is this model's
    batches = [seeds[k : k + options.batch_size] for k in range(0, len(seeds), options.batch_size)]
    _write_reference(pipeline, batches, options.out)
    measures, real = _distances_from(options, model)
    for name, steps in missing:
        points[name, steps] = measure(pipeline, name, steps, batches, options.out, measures, real)
        _write_points(options.out, identity, points.values())
        print(f"| {' | '.join(points[name, steps].row())} |", flush=True)
    title = f"{options.model}, {len(seeds)} videos"
    report([points[key] for key in points_due], title, options.out, page=options.page)


def plan(missing: Sequence[tuple[str, int]], total: int, seeds: Sequence[int], out: Path) -> Iterator[str]:
    """Yield what would be sampled, and how many evaluations of the denoiser that takes per video."""
    left = sum(not _reference_file(out, seed).is_file() for seed in seeds)
    yield f"{left} of {len(seeds)} reference videos of {REFERENCE_STEPS} steps are to be sampled."
    yield f"{len(missing)} of {total} points are to be measured:"
    yield from (f"{name}, {steps} steps" for name, steps in missing)
    total = left * REFERENCE_STEPS + len(seeds) * sum(steps for _, steps in missing)
    yield f"About {total:,} evaluations of the denoiser, each for one video."


def _read_points(path: Path, identity: Mapping[str, Any]) -> dict[tuple[str, int], Point]:
    """Return the points of an earlier call. Raises `BadInput` for those of another model or other seeds."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, points = content["of"], [Point(**point) for point in content["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); take another --out, or remove it.") from error
    for key, value in json.loads(json.dumps(identity)).items():
        if settings.get(key) != value:
            raise BadInput(f"{path} is about another {key}; take another --out.")
    return {(point.sampler, point.steps): point for point in points}


def _write_points(out: Path, identity: Mapping[str, Any], points: Iterable[Point]) -> None:
    """Write what `_read_points` reads."""
    write_json(out / "points.json", {"of": identity, "points": [asdict(point) for point in points]})


def _reference_file(out: Path, seed: int) -> Path:
    """Return where the reference of one seed lies."""
    return out / "reference" / f"seed-{seed}.safetensors"


def _write_reference(pipeline: MedSoraPipeline, batches: Sequence[Sequence[int]], out: Path) -> None:
    """Sample the reference of the seeds that have none yet, a batch at a time."""
    missing = [[seed for seed in batch if not _reference_file(out, seed).is_file()] for batch in batches]
    steps = REFERENCE_STEPS * sum(map(bool, missing))
    with progress_bar("reference", total=steps, unit="step") as bar:
        for seeds in filter(None, missing):
            scheduler = scheduler_of(pipeline, "ddim", REFERENCE_STEPS)
            z = latents(pipeline, scheduler, seeds, callback=lambda *_: bar.update() and None)
            for seed, latent, video in zip(seeds, z, decode(pipeline, z), strict=True):
                tensors = {"latents": latent.cpu().contiguous(), "frames": video.cpu().contiguous()}
                with written_beside(_reference_file(out, seed)) as beside:
                    save_file(tensors, beside)


def scheduler_of(pipeline: MedSoraPipeline, sampler: str, steps: int) -> SchedulerMixin:
    """Return a fresh scheduler of a name in `CHOICES`, over the pipeline's noise schedule."""
    config = pipeline.scheduler.config
    schedule = {name: config[name] for name in NOISE_SCHEDULE if name in config}
    if sampler in OTHERS:
        return OTHERS[sampler](steps, **SCHEDULE | schedule)
    return make_scheduler(sampler, steps, **schedule)


def latents(
    pipeline: MedSoraPipeline,
    scheduler: SchedulerMixin,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> Tensor:
    """Return scaled latents (B, f, C, h, w), float32, without labels, as the pipeline samples them."""
    denoiser, config = pipeline.denoiser, pipeline.config
    images = config.image_latents if denoiser.config.get("mixing") == "mixed" else 0
    clip, *rest = pipeline.vae.latent_shape(config.frames, *config.size)
    like = torch.empty(len(seeds), clip + images, *rest, device=denoiser.device)
    noise = noise_like(like, [torch.Generator().manual_seed(seed) for seed in seeds])
    prepared = PreparedDenoiser(denoiser, [int(t) for t in scheduler.timesteps], num_images=images)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return prepared(z.to(denoiser.dtype), t).float()

    return sample(denoise, noise, scheduler, callback=callback)[:, :clip]


@torch.no_grad()
def decode(pipeline: MedSoraPipeline, z: Tensor) -> Tensor:
    """Return float32 videos (B, F, 3, H, W) in [-1, 1]."""
    return pipeline.vae.decode(z.to(pipeline.vae.device, pipeline.vae.dtype)).float()


def measure(
    pipeline: MedSoraPipeline,
    sampler: str,
    steps: int,
    batches: Sequence[Sequence[int]],
    out: Path,
    measures: Sequence[Measure],
    real: Sequence[Features],
) -> Point:
    """Sample every seed and compare it with its reference; one batch of videos is in memory at a time."""
    squares: list[float] = []
    decibels: list[float] = []
    features: list[list[np.ndarray]] = [[] for _ in measures]
    for seeds in batches:
        scheduler = scheduler_of(pipeline, sampler, steps)
        z = latents(pipeline, scheduler, seeds)
        video = decode(pipeline, z)
        kept = [load_file(_reference_file(out, seed)) for seed in seeds]
        of_z, of_video = (torch.stack([each[key] for each in kept]) for key in ("latents", "frames"))
        squares += (z.cpu() - of_z).square().flatten(1).mean(1).tolist()
        decibels += psnr(video.cpu(), of_video).tolist()
        clips = video_to_frames(video)
        for arrays, measure_ in zip(features, measures, strict=True):
            arrays.append(measure_.extractor(clips))
    distances: dict[str, float] = {}
    for measure_, arrays, of_real in zip(measures, features, real, strict=True):
        distances |= measure_.compare(of_real, Features.of(np.concatenate(arrays)))
    return Point(
        sampler,
        steps,
        len(scheduler.timesteps),
        math.sqrt(sum(squares) / len(squares)),
        sum(decibels) / len(decibels),
        {name: distances[name] for name in DISTANCES if name in distances},
    )


def _distances_from(options: argparse.Namespace, model: ModelFolder) -> tuple[list[Measure], list[Features]]:
    """Return the evaluation's measures that need no weights, and the real clips' features, or none."""
    frames, (height, width) = model.geometry["frames"], model.geometry["size"]
    if frames < 2 or options.videos < 2 or (options.real is None and height != width):
        print("No distances: they take two videos of two frames and, without --real, square frames.")
        return [], []
    root, read = options.real, {"interval": 1, "crop": "none"}
    if root is None:
        phantom = trained_phantom(options.model)
        root = phantom_folder(options.out, options.videos, frames, height, HELD_OUT_SEED, phantom)
    else:
        read = {"interval": 1, "crop": "auto"} | model.trained_on
    clips = require_enough(
        choose_clips(root, frames=frames, size=(height, width), count=options.videos, seed=0, **read)
    )
    measures = list(build_measures(WEIGHT_FREE, {}, "cpu", flow="dis").values())
    rows = [[each.extractor(clips.read(k)[None]) for k in range(len(clips))] for each in measures]
    return measures, [Features.of(np.concatenate(of_measure)) for of_measure in rows]


def report(points: Sequence[Point], title: str, out: Path, *, page: bool = False) -> None:
    """Write the table and the plot into `out`, and with `page` into the documentation; print what follows."""
    lines = [
        f"{title}; reference: DDIM with {REFERENCE_STEPS} steps from the same noise.",
        "",
        *markdown_table(HEAD, [point.row() for point in points]),
        "",
        *(f"- {sentence}" for sentence in conclusions(points)),
    ]
    write_text(out / "steps.md", "\n".join(lines) + "\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *(point.row() for point in points)])
    write_text(out / "steps.csv", text.getvalue())
    draw(out / "steps.svg", points)
    if page:
        draw(PICTURE, points)
        picture = f"![PSNR over the denoiser's evaluations](images/{PICTURE.name})"
        write_between_marks(PAGE, BEGIN, ["", picture, "", *lines, ""])
    print(*lines[-len(conclusions(points)) :], f"See {out / 'steps.md'}.", sep="\n")


def conclusions(points: Sequence[Point]) -> list[str]:
    """Return whether the goals are reached, and by what."""
    default = next((p for p in points if (p.sampler, p.steps) == ("ddim", DDIM_STEPS)), None)
    if default is None:
        goals = []
        sentences = [
            f"ddim with {DDIM_STEPS} steps was not measured, so that no sampler is compared with it."
        ]
    else:
        goals = [(default.psnr_db - MAX_LOSS_DB, MAX_EVALUATIONS_OF_DDIM)]
        sentences = [f"ddim with {DDIM_STEPS} steps: {default.psnr_db:.2f} dB."]
    for least, most in [*goals, (INVISIBLE_DB, MAX_EVALUATIONS_INVISIBLE)]:
        fewest = min((p for p in points if p.psnr_db >= least), key=lambda p: p.evaluations, default=None)
        reached = "by no point of this table"
        if fewest is not None:
            reached = f"by {fewest.sampler} with {fewest.evaluations} evaluations ({fewest.psnr_db:.2f} dB)"
        held = fewest is not None and fewest.evaluations <= most
        sentences.append(
            f"{least:.2f} dB in at most {most} evaluations: {'reached' if held else 'missed'}; first reached "
            f"{reached}."
        )
    return sentences


def draw(path: Path, points: Sequence[Point]) -> None:
    """Draw PSNR over evaluations, a line per sampler, and what must be reached."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="evaluations of the denoiser", ylabel=f"PSNR to DDIM-{REFERENCE_STEPS}, dB"
    )
    for sampler in dict.fromkeys(point.sampler for point in points):
        line = sorted((p.evaluations, p.psnr_db) for p in points if p.sampler == sampler)
        axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=sampler)
    axes.axhline(INVISIBLE_DB, color="black", linewidth=0.8, linestyle=":")
    ticks = sorted({point.evaluations for point in points if point.steps in DEFAULT_STEPS})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    axes.minorticks_off()
    axes.legend(fontsize=8)
    save_figure(path, figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, a saved pipeline's folder, or a model that comes with MedSora")
    add("--out", type=Path, default="runs/steps", metavar="DIR", help="(default: %(default)s)")
    samplers = f"(default: all: {', '.join(CHOICES)})"
    add("--samplers", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME", help=samplers)
    add("--steps", nargs="+", type=int, default=list(DEFAULT_STEPS), metavar="N", help="(default: 5 to 250)")
    add("--videos", type=int, default=16, metavar="N", help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="video k has this seed + k (default: %(default)s)")
    add("--batch-size", type=int, default=4, metavar="N", help="videos in memory (default: %(default)s)")
    real = "clips for the evaluation's distances (default: fresh phantom clips)"
    add("--real", type=Path, metavar="DIR", help=real)
    add("--raw", action="store_true", help="a run's raw weights instead of their moving average")
    add("--page", action="store_true", help=f"write table and plot into docs/{PAGE.name}")
    add("--dry-run", action="store_true", help="print what would be sampled")
    options = parser.parse_args()
    limits = {"videos": (1, MAX_VIDEOS), "batch_size": (1, MAX_VIDEOS), "seed": (0, 2**62)}
    check_limits(options, limits)
    for steps in options.steps:
        trailing_timesteps(steps)
    options.samplers, options.steps = (list(dict.fromkeys(x)) for x in (options.samplers, options.steps))
    return options
