"""From the page's fields to videos: checked, sampled, written with a mark that they are synthetic."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medsora.config.choices import SAMPLERS
from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.sampling.conditions import read_first_frames
from medsora.sampling.run import OF_CODES, OF_DIFFUSION
from medsora.sampling.synthetic import SYNTHETIC, synthetic_tags
from medsora.sampling.tokens import DEFAULT_TOP_K, check_draws
from medsora.saved.find import ENDOGEN, MEDSORA
from medsora.saved.pipeline import SavedPipeline

MAX_VIDEOS, MAX_STEPS, MAX_SEED = 16, 1000, 2**53  # beyond, a browser's numbers have gaps
SAMPLINGS_KEPT = 4  # on the disk; a comparison needs two, what the browser shows and saves are copies
MAX_GUIDANCE = 8
MAX_TOP_K = 2**20
MAX_WORK = 64_000  # steps x videos x frames: 16 videos of 16 frames in 250 steps
PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"(){};,:]+/)+(?=[^\s/])")


@dataclass(frozen=True)
class SampleRequest:
    """A sampling request; video k has the seed `seed` + k. Raises `BadInput` for invalid values.

    Without a `label`, `guidance` does not count. `first_frame` is the path of a picture. `kind` is that of
    the model (`ModelFolder.kind`): `sampler`, `steps` and `first_frame` count for `MEDSORA` alone,
    `temperature`, `top_k` and `top_p` for `ENDOGEN`.
    """

    sampler: str
    steps: int
    seed: int
    videos: int
    label: str | None = None
    guidance: float = 1
    first_frame: str | None = None
    temperature: float = 1
    top_k: int = DEFAULT_TOP_K
    top_p: float = 1
    kind: str = MEDSORA

    def __post_init__(self) -> None:
        whole_numbers = [("seed", self.seed, 0, MAX_SEED), ("number of videos", self.videos, 1, MAX_VIDEOS)]
        if self.kind == ENDOGEN:
            whole_numbers.append(("top-k", self.top_k, 0, MAX_TOP_K))
        else:
            whole_numbers.insert(0, ("steps", self.steps, 1, MAX_STEPS))
            if self.sampler not in SAMPLERS:
                raise BadInput(f"There is no sampler {self.sampler}; choose {' or '.join(SAMPLERS)}.")
        for name, value, least, most in whole_numbers:
            whole = _is_number(value) and value == value // 1
            if not whole or not least <= value <= most:
                what = "nothing" if value is None else f"{value:,}" if isinstance(value, int) else value
                raise BadInput(f"The {name} must be a whole number from {least} to {most:,}, not {what}.")
        if self.kind == ENDOGEN:
            for name, value in (("temperature", self.temperature), ("top-p", self.top_p)):
                if not _is_number(value):
                    raise BadInput(f"The {name} must be a number, not {value or 'nothing'}.")
            check_draws(self.temperature, int(self.top_k), self.top_p)
        if self.label and not (_is_number(self.guidance) and 1 <= self.guidance <= MAX_GUIDANCE):
            what = "nothing" if self.guidance is None else self.guidance
            raise BadInput(f"The guidance must be a number from 1 to {MAX_GUIDANCE}, not {what}.")

    @property
    def seeds(self) -> list[int]:
        """One per video."""
        return [int(self.seed) + number for number in range(int(self.videos))]

    @property
    def sampler_words(self) -> str:
        """Description of the sampling of a model of this kind."""
        if self.kind == ENDOGEN:
            return ", ".join(f"{name.replace('_', '-')} {getattr(self, name):g}" for name in OF_CODES)
        return f"{self.sampler}, {int(self.steps)} steps"

    @property
    def condition_words(self) -> str:
        """The conditions in words that follow a comma; empty without any."""
        label = f", {self.label}, guidance {self.guidance:g}" if self.label else ""
        return f"{label}, first frame given" if self.first_frame else label


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_picture(path: str | Path, uploads: str | Path) -> None:
    """Raise `BadInput` unless `path` is a picture that can be read, and lies in the folder of uploads."""
    if not Path(path).resolve().is_relative_to(Path(uploads).resolve()):
        raise BadInput("The picture must be uploaded.")  # only a forged request names another file
    try:
        read_image(path)
    except UnreadableVideo as error:
        raise BadInput(f"The picture cannot be read: {error.reason}.") from error


def without_paths(sentence: str) -> str:
    """Return a message for visitors: without the folders of the server's files."""
    for folder in (Path.cwd(), Path(tempfile.gettempdir()), Path.home()):
        if folder != Path(folder.anchor):
            sentence = sentence.replace(f"{folder}/", "")
    return PATH.sub("", sentence)


def sample_files(
    pipeline: SavedPipeline, model: str, request: SampleRequest, on_progress: Callable[[float, str], None]
) -> list[Path]:
    """Sample into a temporary folder, which the next few samplings leave alone; return one mp4 per video.

    `on_progress(part, words)` is called after each step, with the part done, 0 to 1. Raises `BadInput` if the
    model cannot do that, `NonFiniteVideo` if it computes NaN.
    """
    if request.kind == ENDOGEN:
        options = {"temperature": request.temperature, "top_k": int(request.top_k), "top_p": request.top_p}
        total, what = pipeline.transformer.length, "writing, code"
    else:
        options = _diffusion_options(pipeline, request)
        total, what = int(request.steps), "denoising, step"
    done = 0

    def after_step(*_: Any) -> None:
        nonlocal done
        done += 1
        on_progress(min(done / total, 1.0), f"{what} {done} of {total}")

    frames = pipeline(
        seeds=request.seeds,
        batch_size=MAX_VIDEOS,
        callback=after_step,
        label=request.label,
        guidance=float(request.guidance) if request.label else 1.0,
        output_type="uint8",
        **options,
    ).frames
    folder = _new_folder()
    paths = []
    for seed, video in zip(request.seeds, frames, strict=True):
        paths.append(folder / f"seed-{seed}.mp4")
        tags = synthetic_tags(
            f"{model}, seed {seed}, {request.sampler_words}{request.condition_words}", pipeline.trained_on
        )
        write_video(paths[-1], video, pipeline.config.fps, metadata=tags)
    return paths


def _diffusion_options(pipeline: SavedPipeline, request: SampleRequest) -> dict[str, Any]:
    config = pipeline.config
    if (work := int(request.steps) * int(request.videos) * config.frames) > MAX_WORK:
        raise BadInput(
            f"{request.steps:,} steps of {request.videos} videos of {config.frames} frames are {work:,} "
            f"frames to denoise, more than {MAX_WORK:,}: choose fewer steps or videos."
        )
    first = None
    if request.first_frame:
        of_clip = config.given_frames, config.frames, pipeline.vae.frames_per_chunk
        first = read_first_frames(request.first_frame, *of_clip, rate=config.rate, crop=config.crop)
    return {"num_inference_steps": int(request.steps), "sampler": request.sampler, "first_frames": first}


@cache
def _workplace() -> tempfile.TemporaryDirectory:
    """The process's own folder, gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="medsora-")


def _new_folder() -> Path:
    """Return a new folder for one sampling; all but the last few are removed, the page has shown them."""
    made = sorted(Path(_workplace().name).iterdir())
    for old in made[: max(len(made) + 1 - SAMPLINGS_KEPT, 0)]:
        shutil.rmtree(old)
    folder = Path(_workplace().name) / f"{int(made[-1].name) + 1 if made else 0:09d}"
    folder.mkdir()
    return folder


def pack(paths: list[Path], model: str, request: SampleRequest) -> Path:
    """Return a zip of the videos and a manifest that describes them, beside the first."""
    other = OF_DIFFUSION if request.kind == ENDOGEN else OF_CODES
    settings = {key: value for key, value in asdict(request).items() if key not in (*other, "kind")}
    manifest: dict[str, Any] = {"synthetic": True, "note": SYNTHETIC, "model": model, **settings}
    manifest["guidance"] = request.guidance if request.label else None
    if "first_frame" in settings:
        manifest["first_frame"] = Path(request.first_frame).name if request.first_frame else None
    manifest["files"] = [path.name for path in paths]
    archive = paths[0].with_name(f"medsora-seed-{request.seeds[0]}.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in paths:
            file.write(path, path.name)
        file.writestr("manifest.json", json.dumps(manifest, indent=1))
    return archive
