"""The work behind `sample_ddim.py`: split the videos over processes, skip those that exist, keep a manifest.

OUT/video-00000.mp4 ...   one file, or one folder of pictures, per video; complete or absent
OUT/contact-sheet.png     the first videos, one row each
OUT/manifest.json         seeds, settings, how the training clips were read, the weights' SHA-256 and library
                          versions; written first. At the end the videos' SHA-256, which readers compare
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from medsora.config.choices import COMPILE, FORMATS, SAMPLERS
from medsora.data.reading.find import VIDEO_SUFFIXES
from medsora.data.reading.video_io import read_frames, write_video
from medsora.data.sheet import SHEET_NAME, contact_sheet, save_image
from medsora.denoiser.linear import bf16_problem
from medsora.errors import BadInput, Interrupted, bad_input_from_errors
from medsora.runtime.digests import sealed, sha256, unsealed
from medsora.runtime.exit import is_main_process
from medsora.runtime.files import name_beside, read_patiently, remove_leftovers, write_json
from medsora.runtime.interruption import StopRequest
from medsora.runtime.malloc import keep_freed_memory
from medsora.runtime.processes import check_same_folders, in_process_group, on_main, share_of
from medsora.runtime.progress_bar import progress_bar
from medsora.runtime.versions import library_versions
from medsora.sampler import trailing_timesteps
from medsora.sampling.conditions import (
    FilmPlan,
    check_first_frames,
    check_guidance,
    label_numbers,
    plan_film,
    read_first_frames,
)
from medsora.sampling.synthetic import MANIFEST, TRAINED_ON_KEY, synthetic_tags
from medsora.saved.classes import VAES, class_of_part
from medsora.saved.find import ENDOGEN, MEDSORA, UNKNOWN_RATE, ModelFolder, find_model
from medsora.saved.limits import MAX_FPS, check_part
from medsora.saved.pipeline import DTYPES, SavedPipeline, saved_sampler

log = logging.getLogger(__name__)

SHEET_ROWS = 12
PIPELINES = {MEDSORA: "medsora.sampling.pipeline", ENDOGEN: "medsora.sampling.tokens"}
# Settings that only one kind of model has.
OF_DIFFUSION = ("steps", "eta", "sampler", "compile", "first_frame", "window", "frames")
OF_CODES = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings. Video k has the seed `seed` + k; the model's own clip length and rate are defaults.

    `batch_size` counts videos per process and changes memory and speed only. Without a `sampler` the model's
    own scheduler samples. `OF_DIFFUSION` and `OF_CODES` are settings of one kind of model each. Raises
    `BadInput` for a value that is not possible.
    """

    model: str
    out: Path = Path("videos")
    num_videos: int = 4
    batch_size: int = 8
    steps: int = 250
    eta: float = 0.0
    seed: int = 0
    sampler: str | None = None
    dtype: str = "fp32"
    vae_dtype: str = "auto"
    compile: str = "auto"
    frames: int | None = None
    format: str = "mp4"
    fps: float | None = None
    raw: bool = False
    label: str | None = None
    guidance: float = 1.0
    first_frame: Path | None = None
    window: int | None = None
    temperature: float = 1.0
    top_k: int = 2000
    top_p: float = 1.0

    def __post_init__(self) -> None:
        choices = {
            "sampler": (None, *SAMPLERS),
            "dtype": ("auto", *DTYPES),
            "vae_dtype": ("auto", *DTYPES),
            "compile": COMPILE,
            "format": FORMATS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise BadInput(
                    f"{name} must be one of {', '.join(filter(None, known))}, not {getattr(self, name)!r}."
                )
        for name in ("num_videos", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.seed <= 2**62:
            raise BadInput(f"the seed must lie between 0 and 2^62, not {self.seed}.")
        if not 0 <= self.eta <= 1 or (self.eta > 0 and self.sampler not in (None, "ddim")):
            raise BadInput(
                f"eta must lie between 0 and 1, and be 0 unless the sampler is ddim, not {self.eta}."
            )
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise BadInput(f"fps must be above 0 and at most {MAX_FPS}, not {self.fps}.")
        check_guidance(self.guidance, self.label)
        trailing_timesteps(self.steps)

    def on(self, device: torch.device) -> SamplingSettings:
        """Return the settings with what "auto" means on `device`.

        The denoiser computes in bf16 where that is faster, else in float32, and prints why. The VAE decodes
        in the denoiser's dtype where that was given as bf16 or fp16, else in bf16 on a GPU that has it, and
        in float32 elsewhere.
        """
        problem = bf16_problem(device)
        dtype, vae_dtype = self.dtype, self.vae_dtype
        if dtype == "auto":
            dtype = "fp32" if problem else "bf16"
            if problem and is_main_process():
                log.warning("sampling in fp32: %s", problem)
        if vae_dtype == "auto":
            half = self.dtype in ("auto", "fp32") and device.type == "cuda" and problem is None
            vae_dtype = "bf16" if half else "fp32" if self.dtype == "auto" else dtype
        return replace(self, dtype=dtype, vae_dtype=vae_dtype)

    def refuse_settings(self, names: Sequence[str], kind: str) -> None:
        """Raise `BadInput` if one of the settings `names`, which a `kind` lacks, is not at its default."""
        usual = type(self)(self.model, self.out)
        for name in names:
            if getattr(self, name) != getattr(usual, name):
                raise BadInput(
                    f"{self.model} is for {kind}, which takes no --{name.replace('_', '-')}; leave that out."
                )

    def only(self, names: Sequence[str]) -> dict[str, Any]:
        """Return these settings by name."""
        return {name: getattr(self, name) for name in names}

    def path(self, number: int) -> Path:
        """Return where a video goes."""
        name = f"video-{number:05d}"
        return self.out / (f"{name}.mp4" if self.format == "mp4" else name)


@dataclass(frozen=True)
class Plan:
    """The main process's plan for all: the model, the clip, and the videos that are missing."""

    model: ModelFolder
    frames: int
    fps: float
    missing: list[int]
    sampler: str
    film: FilmPlan
    first_frames: np.ndarray | None

    def details(self, settings: SamplingSettings) -> str:
        """Settings of sampling for a video's tags, besides its seed."""
        return self.sampler if self.model.kind == ENDOGEN else f"{self.sampler}, {settings.steps} steps"


def sample_videos(settings: SamplingSettings) -> list[Path]:
    """Sample the videos that are not there yet, in as many processes as were launched; return all paths.

    Raises `BadInput` for a model or folder that cannot be used, before anything is sampled, and `Interrupted`
    after Ctrl-C or SIGTERM; finished videos stay and are skipped the next time.
    """
    with in_process_group() as state:
        return _sample(settings, state)


def _sample(settings: SamplingSettings, state: PartialState) -> list[Path]:
    settings = settings.on(state.device)
    keep_freed_memory()
    check_same_folders(output=settings.out)
    plan = on_main(state, lambda: _plan(settings, state.num_processes))
    mine = [plan.missing[k] for k in share_of(state, len(plan.missing))]
    if mine:
        with StopRequest() as stop:
            with bad_input_from_errors():
                pipeline = pipeline_class(plan.model.kind).from_folder(
                    plan.model, dtype=DTYPES[settings.dtype], vae_dtype=DTYPES[settings.vae_dtype]
                )
            pipeline.to(state.device)
            _sample_share(settings, plan, pipeline, mine, stop, show=state.is_main_process)
    state.wait_for_everyone()
    paths = [settings.path(number) for number in range(settings.num_videos)]
    if state.is_main_process:
        _list_digests(settings.out)
    if state.is_main_process and (plan.missing or not (settings.out / SHEET_NAME).is_file()):
        with bad_input_from_errors():
            shown = enumerate(paths[:SHEET_ROWS], settings.seed)
            rows = [(f"seed {seed}", read_frames(path)) for seed, path in shown]
            save_image(settings.out / SHEET_NAME, contact_sheet(rows, columns=8))
    return paths


def pipeline_class(kind: str) -> type[SavedPipeline]:
    """Return the class of the pipelines of a `ModelFolder.kind`."""
    return getattr(import_module(PIPELINES[kind]), kind)


def _sample_share(
    settings: SamplingSettings,
    plan: Plan,
    pipeline: SavedPipeline,
    numbers: list[int],
    stop: StopRequest,
    *,
    show: bool,
) -> None:
    """Sample this process's videos, batch by batch, each written as soon as its batch is done."""
    pipeline.set_progress_bar_config(disable=True)
    size = settings.batch_size
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    coded = plan.model.kind == ENDOGEN
    of_batch = pipeline.transformer.length if coded else settings.steps * plan.film.windows
    options = settings.only(OF_CODES) if coded else _diffusion_options(settings, plan)

    def write(number: int, video: np.ndarray) -> None:
        _write(settings, settings.path(number), video, plan, settings.seed + number)

    with (
        progress_bar("sampling", total=len(batches) * of_batch, unit="step", show=show) as bar,
        BackgroundWriter(write) as writing,
    ):

        def after_step(*_: int | Tensor) -> None:
            bar.update()
            if stop.wanted():
                raise Interrupted(
                    f"{stop.reason}; finished videos stay in {settings.out}, rerun for the others."
                )

        for batch in batches:
            videos = pipeline(
                seeds=[settings.seed + number for number in batch],
                batch_size=size,
                label=settings.label,
                guidance=settings.guidance,
                callback=after_step,
                output_type="uint8",
                **options,
            ).frames
            writing.add(batch, videos)


def _diffusion_options(settings: SamplingSettings, plan: Plan) -> dict[str, Any]:
    return {
        "num_inference_steps": settings.steps,
        "frames": plan.frames,
        "first_frames": plan.first_frames,
        **settings.only(("sampler", "eta", "compile", "window")),
    }


class BackgroundWriter:
    """Writes a batch's videos in a thread while the next batch is sampled; at most one batch waits.

    Leaving waits for unfinished writes, after an interruption too. A failure is raised by the next `add`
    or on leaving.
    """

    def __init__(self, write: Callable[[int, np.ndarray], None]) -> None:
        self.write = write
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.pending: list[Future[None]] = []

    def add(self, numbers: Sequence[int], videos: Iterable[np.ndarray]) -> None:
        """Hand over a batch once the one before it is written."""
        self._finish()
        pairs = zip(numbers, videos, strict=True)
        self.pending = [self.thread.submit(self.write, number, video) for number, video in pairs]

    def _finish(self) -> None:
        with bad_input_from_errors():
            for future in self.pending:
                future.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown(wait=True)
        if kind is None:
            self._finish()


def _write(settings: SamplingSettings, path: Path, video: np.ndarray, plan: Plan, seed: int) -> None:
    tags = synthetic_tags(f"seed {seed}, {plan.details(settings)}", plan.model.trained_on)
    if settings.format == "mp4":
        write_video(path, video, plan.fps, metadata=tags)
        return
    beside, text = name_beside(path), PngInfo()
    for key, value in tags.items():
        text.add_text(key, value)
    try:
        beside.mkdir()
        for number, frame in enumerate(video):
            Image.fromarray(frame).save(beside / f"frame-{number:05d}.png", pnginfo=text)
        beside.rename(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}; make room.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# Planning: on the main process alone, so that all processes take the same checkpoint and the same videos


def _plan(settings: SamplingSettings, processes: int) -> Plan:
    model = find_model(settings.model, raw=settings.raw)
    if model.kind == ENDOGEN:
        return _plan_codes(settings, model, processes)
    settings.refuse_settings(OF_CODES, "MedSoraPipeline")
    frames = model.geometry["frames"] if settings.frames is None else settings.frames
    size, trained = model.geometry["size"], model.geometry.get("given_frames", [])
    vae = class_of_part(VAES, check_part(model.vae), model.vae)
    film = plan_film(frames, settings.window, trained, vae.frames_per_chunk)
    vae.check_video_shape(film.window, *size)
    first = None
    if settings.first_frame is not None:
        of_clip = trained, film.window, vae.frames_per_chunk
        trained_on = {key: model.geometry.get(key) for key in ("rate", "crop")}
        first = read_first_frames(settings.first_frame, *of_clip, **trained_on)
        clip = film.window, size, settings.num_videos, vae.frames_per_chunk
        first = check_first_frames(first, trained, *clip)[0]
    label_numbers(settings.label, model.geometry.get("labels", []), settings.num_videos)
    sampler, scheduler = saved_sampler(model)
    sampler = settings.sampler or sampler
    if settings.eta > 0 and "ddim" not in sampler.lower():
        raise BadInput(f"eta is {settings.eta}, but the model's {sampler} has none; take --sampler ddim.")
    recorded = _common(settings, model) | {
        "frames": frames,
        **settings.only(("steps", "eta")),
        "sampler": sampler,
        "scheduler": scheduler,
        "first_frames": None if first is None else [len(first), hashlib.sha256(first.tobytes()).hexdigest()],
        "window": film.window if film.windows > 1 else None,
    }
    missing = _write_manifest(settings, model, recorded, processes)
    return Plan(model, frames, recorded["fps"], missing, sampler, film, first)


def _plan_codes(settings: SamplingSettings, model: ModelFolder, processes: int) -> Plan:
    settings.refuse_settings(OF_DIFFUSION, ENDOGEN)
    check_draws = import_module("medsora.sampling.tokens").check_draws
    check_draws(settings.temperature, settings.top_k, settings.top_p)
    label_numbers(settings.label, model.geometry.get("labels", []), settings.num_videos)
    options = settings.only(OF_CODES)
    recorded = _common(settings, model) | options
    missing = _write_manifest(settings, model, recorded, processes)
    frames = model.geometry["frames"]
    sampler = ", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in options.items())
    return Plan(model, frames, recorded["fps"], missing, sampler, FilmPlan(frames, frames, 0), None)


def _common(settings: SamplingSettings, model: ModelFolder) -> dict[str, Any]:
    """Return the settings that the manifest states of any kind of model."""
    return {
        "weights_sha256": model.digests(),
        "weights": model.weights,
        "frames": model.geometry["frames"],
        "size": model.geometry["size"],
        "fps": model.geometry["fps"] if settings.fps is None else settings.fps,
        **settings.only(("seed", "dtype", "vae_dtype", "format", "label")),
        "guidance": settings.guidance if settings.label else None,
    }


def _write_manifest(
    settings: SamplingSettings, model: ModelFolder, recorded: dict[str, Any], processes: int
) -> list[int]:
    """Write the manifest if videos are missing; return their numbers."""
    before = _check_out(settings, recorded)
    remove_leftovers(settings.out)
    missing = [number for number in range(settings.num_videos) if not settings.path(number).exists()]
    if missing and settings.fps is None and settings.format == "mp4" and "rate" not in model.geometry:
        log.warning(UNKNOWN_RATE + "; --fps sets another.", settings.model, recorded["fps"])
    if missing:
        videos = [
            {"file": settings.path(number).name, "seed": settings.seed + number}
            for number in range(max(settings.num_videos, len(before)))
        ]
        for video in videos:
            if (digest := before.get(video["file"])) and (settings.out / video["file"]).exists():
                video["sha256"] = digest
        manifest = {
            "synthetic": True,
            "model": str(settings.model),
            "step": model.step,
            "settings": recorded,
            TRAINED_ON_KEY: model.trained_on,
            "videos": videos,
            "processes": processes,
            "versions": library_versions(),
        }
        try:
            write_json(settings.out / MANIFEST, sealed(manifest))
        except OSError as error:
            raise BadInput(f"{str(error).rstrip('.')}; make room, or take another --out.") from error
    return missing


def _list_digests(out: Path) -> None:
    """Add the SHA-256 of video files that the manifest lists without one; readers compare it."""
    with bad_input_from_errors():
        manifest = unsealed(json.loads(read_patiently(Path.read_bytes, out / MANIFEST)))
        new = [video for video in manifest["videos"] if "sha256" not in video]
        for video in new:
            if (path := out / video["file"]).is_file():
                video["sha256"] = read_patiently(sha256, path)
        if any("sha256" in video for video in new):
            write_json(out / MANIFEST, sealed(manifest))


def _check_out(settings: SamplingSettings, recorded: dict[str, Any]) -> dict[str, str | None]:
    """Return the videos that the folder's manifest lists, with their SHA-256 if it has them.

    Raises `BadInput` if their settings differ.
    """
    out = settings.out
    path = out / MANIFEST
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file, but a folder is wanted; take another --out.")
    if not path.exists() and out.is_dir() and (others := _foreign_videos(out)):
        raise BadInput(
            f"--out {out} holds {len(others)} video{'s' * (len(others) != 1)} not generated here, such as "
            f"{others[0]}; take a folder of its own."
        )
    if not any(out.glob("video-*")):
        return {}
    if not path.is_file():
        raise BadInput(f"{out} holds videos but no {MANIFEST} with their settings; take another --out.")
    try:
        before = unsealed(json.loads(path.read_text(encoding="utf-8")))
        settings_before = dict(before["settings"])
        videos = {video["file"]: video.get("sha256") for video in before["videos"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is not a sampling manifest; take another --out.") from error
    for key, value in recorded.items():
        if settings_before.get(key) != value:
            raise BadInput(
                f"{out} holds videos made with {key} {settings_before.get(key)}, but now it is {value}; "
                "take another --out, so that they do not mix."
            )
    return videos


def _foreign_videos(out: Path) -> list[str]:
    """Return the names of the video files in `out` that are not named as ours are."""
    names = (path.name for path in out.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(name for name in names if not name.startswith(("video-", ".")))
