"""From what was typed into the page to videos: checked, sampled, written with the mark of the synthetic."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from medsora.data.video_io import write_video
from medsora.diffusion import SAMPLERS
from medsora.errors import BadInput
from medsora.pipeline import MedSoraPipeline
from medsora.synthetic import SYNTHETIC, synthetic_tags

MOST_VIDEOS, MOST_STEPS, LARGEST_SEED = 16, 1000, 2**53  # beyond, a browser's numbers have gaps
SAMPLINGS_KEPT = 4  # on the disk; a comparison needs two, what the browser shows and saves are copies


@dataclass(frozen=True)
class Wish:
    """What to sample; video k has the seed `seed` + k. Raises `BadInput` for what is not possible."""

    sampler: str
    steps: int
    seed: int
    videos: int

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise BadInput(f"There is no sampler {self.sampler}; choose {' or '.join(SAMPLERS)}.")
        for name, value, least, most in (
            ("steps", self.steps, 1, MOST_STEPS),
            ("seed", self.seed, 0, LARGEST_SEED),
            ("number of videos", self.videos, 1, MOST_VIDEOS),
        ):
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
            if not whole or not least <= value <= most:
                what = "nothing" if value is None else f"{value:,}" if isinstance(value, int) else value
                raise BadInput(f"The {name} must be a whole number from {least} to {most:,}, not {what}.")

    @property
    def seeds(self) -> list[int]:
        """One per video."""
        return [int(self.seed) + number for number in range(int(self.videos))]


def sample_files(
    pipeline: MedSoraPipeline, model: str, wish: Wish, tell: Callable[[float, str], None]
) -> list[Path]:
    """Sample into a temporary folder, which the next few samplings leave alone; return one mp4 per video.

    `tell(part, words)` hears how far it is, 0 to 1.
    """
    done, total = 0, int(wish.steps)

    def after_step(number: int, t: int, z: Tensor) -> None:
        nonlocal done
        done += 1
        tell(min(done / total, 1.0), f"denoising, step {done} of {total}")

    frames = pipeline(
        num_inference_steps=total,
        seeds=wish.seeds,
        sampler=wish.sampler,
        batch_size=MOST_VIDEOS,
        callback=after_step,
    ).frames
    folder = _new_folder()
    paths = []
    for seed, video in zip(wish.seeds, frames, strict=True):
        paths.append(folder / f"seed-{seed}.mp4")
        tags = synthetic_tags(f"{model}, seed {seed}, {wish.sampler}, {total} steps")
        write_video(paths[-1], video, pipeline.config.fps, metadata=tags)
    return paths


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


def packed(paths: list[Path], model: str, wish: Wish) -> Path:
    """Return a zip of the videos and a manifest that says what they are, beside the first."""
    manifest: dict[str, Any] = {"synthetic": True, "note": SYNTHETIC, "model": model, **asdict(wish)}
    manifest["files"] = [path.name for path in paths]
    archive = paths[0].with_name(f"medsora-seed-{wish.seeds[0]}.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in paths:
            file.write(path, path.name)
        file.writestr("manifest.json", json.dumps(manifest, indent=1))
    return archive
