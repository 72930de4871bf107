"""A folder of phantom clips: lossless videos, their exact flow beside them, labels and what made them."""

from __future__ import annotations

import csv
import fcntl
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.exact_flow import flow_path, write_flow
from medsora.data.phantom.looks import find_look
from medsora.data.phantom.render import KINDS, check_polyp_size, render_clip
from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.runtime.digests import sealed, sha256, unsealed
from medsora.runtime.files import (
    is_file,
    make_folder,
    read_patiently,
    remove_leftovers,
    write_bytes,
    write_json,
    written_beside,
)

LOOK = 1  # raise when the renderer draws other pictures from the same seed
LABELS_NAME = "labels.csv"
MASK_LAYOUT = ("images", "masks")  # folders, as Kvasir-SEG has them
FPS = 10
_DONE, _BEGUN, _LOCK = "phantom.json", ".phantom.begun.json", ".phantom.lock"
_LABELS_DIGEST = "labels_sha256"  # a key of phantom.json, which those of earlier versions do not have


def clip_seed(seed: int, index: int) -> int:
    """Seed of clip `index` of the corpus `seed`; corpora of different seeds share no clips."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def variant_suffix(polyp_size: float, look: str) -> str:
    """The part of a folder's name for polyps of another size, and for another look."""
    polyps = "" if polyp_size == 1 else f"-polyps{polyp_size:g}"
    return polyps if look == PHANTOM_LOOKS[0] else f"{polyps}-{look}"


def phantom_recipe(folder: str | Path) -> dict[str, Any]:
    """Return what a folder's phantom was made by, and the `seeds` of its clips; empty for other folders.

    Raises `BadInput` if it is damaged or cannot be read.
    """
    try:
        return {"polyp_size": 1.0} | _read_recipe(Path(folder) / _DONE)
    except OSError:  # no file of that name; one that cannot be read is `BadInput`
        return {}


def check_labels(table: Path) -> None:
    """Raise `BadInput` if `table` is a phantom's table of labels but not as `write_phantom` left it."""
    if table.name != LABELS_NAME or not is_file(table):
        return
    wanted = phantom_recipe(table.parent).get(_LABELS_DIGEST)
    if wanted is not None and read_patiently(sha256, table) != wanted:
        raise BadInput(
            f"{table} is damaged or was changed: it does not match its checksum in {_DONE}; delete both and "
            "run the command that rendered this phantom, unchanged (its clips stay), or put your own labels "
            "into a file of another name."
        )


def write_phantom(
    folder: str | Path,
    videos: int,
    frames: int,
    size: int,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    polyp_size: float = 1.0,
    look: str = PHANTOM_LOOKS[0],
    masks: bool = False,
) -> None:
    """Fill `folder` with `videos` clips of `frames` frames of `size` x `size` pixels.

    Clip k is `phantom-0000k.mkv` (FFV1, exact RGB) with `phantom-0000k.flow.safetensors`: `flow`, float16
    (F-1, 2, H, W) in pixels from frame to next frame, and `valid`, bool (F-1, H, W). `labels.csv` has the
    columns file, label, polyp, instrument; the labels take turns, so that each has a third. `phantom.json`
    comes last: a folder without it is unfinished and is continued by the next call; with it, and the same
    parameters, nothing is done. If several processes fill the same folder, one renders and the others wait.

    With `masks` every clip shows a polyp and its frames are written as pictures instead, with the exact
    masks of the polyp (0 and 255) under the same names: `images/phantom-0000k-00f.png` and `masks/...`.

    Args:
        workers: processes that render.
        progress: called with (clips done, clips in all) after every clip.
        polyp_size: how wide polyps are, times the usual; see `render_clip`.
        look: the endoscope; see `render_clip`.
        masks: write frames and masks of polyps instead of videos.

    Raises:
        ValueError: bad numbers, an unknown look, or the folder holds a phantom with other parameters.
        OSError: the folder cannot be written.
        RuntimeError: a worker imports the script that called this, and is sent here again by it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # It would wait for the folder that its own parent holds, for ever.
        raise RuntimeError(
            "rendering starts processes that import your script again: "
            "put its calls under `if __name__ == '__main__':`."
        )
    counts = {"videos": videos, "frames": frames, "size": size, "workers": workers}
    for name, value in counts.items():
        if value <= 0:
            raise ValueError(f"phantom: {name} is {value}, expected more than 0.")
    if seed < 0:
        raise ValueError(f"phantom: seed is {seed}, expected 0 or more.")
    check_polyp_size(polyp_size)
    version = look_version(look)
    folder = Path(folder)
    recipe = {"look": version, "videos": videos, "frames": frames, "size": size, "seed": seed, "fps": FPS}
    recipe |= {"polyp_size": polyp_size, "masks": masks}
    for part in ("", *MASK_LAYOUT):
        remove_leftovers(folder / part)
    if _made_before(folder, recipe):
        return
    make_folder(folder)
    with _alone_in(folder):
        if not _made_before(folder, recipe):
            _write_missing(folder, recipe, look, workers, progress)
        (folder / _LOCK).unlink(missing_ok=True)  # who waits for it, and who comes now, finds the folder done


def look_version(look: str) -> int | str:
    """Return what a recipe holds of a look, another value whenever it draws other pictures."""
    version = find_look(look).version
    return LOOK if look == PHANTOM_LOOKS[0] else f"{look} {version}"


def _write_missing(
    folder: Path, recipe: dict[str, Any], look: str, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    write_json(folder / _BEGUN, sealed(recipe))
    clips = [_Clip(folder, index, recipe, look) for index in range(recipe["videos"])]
    missing = [clip for clip in clips if not clip.is_complete()]
    with _runner(min(workers, len(missing))) as run:
        for done, _ in enumerate(run(missing), start=len(clips) - len(missing) + 1):
            if progress:
                progress(done, len(clips))
    with written_beside(folder / LABELS_NAME) as beside, open(beside, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "polyp", "instrument"])
        for clip in clips:
            table.writerow([clip.name, clip.kind, *(int(clip.kind == kind) for kind in KINDS[:2])])
    seeds = {clip.name: clip.seed for clip in clips}
    labels = {_LABELS_DIGEST: sha256(folder / LABELS_NAME)}
    write_json(folder / _DONE, sealed({**recipe, "seeds": seeds, **labels}))
    (folder / _BEGUN).unlink()


@dataclass(frozen=True)
class _Clip:
    """One clip's files in the folder; the file that is written last marks it as complete."""

    folder: Path
    index: int
    recipe: dict[str, Any]
    look: str

    @property
    def name(self) -> str:
        return f"phantom-{self.index:05d}" + ("" if self.recipe["masks"] else ".mkv")

    @property
    def files(self) -> list[Path]:
        """The video and its flow, or the pictures and their masks."""
        video = self.folder / self.name
        if not self.recipe["masks"]:
            return [video, flow_path(video)]
        frames = [f"{self.name}-{frame:03d}.png" for frame in range(self.recipe["frames"])]
        return [self.folder / part / frame for part in MASK_LAYOUT for frame in frames]

    @property
    def kind(self) -> str:
        return KINDS[0 if self.recipe["masks"] else self.index % len(KINDS)]

    @property
    def seed(self) -> int:
        return clip_seed(self.recipe["seed"], self.index)

    def is_complete(self) -> bool:
        return all(file.is_file() for file in self.files)

    def write(self) -> None:
        clip = render_clip(
            self.seed,
            self.recipe["frames"],
            self.recipe["size"],
            polyp=self.kind == "polyp",
            instrument=self.kind == "instrument",
            polyp_size=self.recipe["polyp_size"],
            look=self.look,
        )
        if self.recipe["masks"]:
            pictures = [*clip.video[..., ::-1], *clip.polyp_mask.astype(np.uint8) * 255]
            for file, picture in zip(self.files, pictures, strict=True):
                write_bytes(file, cv2.imencode(".png", picture)[1].tobytes())
            return
        video, _ = self.files
        write_video(video, clip.video, self.recipe["fps"], lossless=True)
        write_flow(video, clip.flow, clip.valid)


def _made_before(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder already contains all of this phantom; refuses to mix it with another."""
    for name in (_DONE, _BEGUN):
        with suppress(FileNotFoundError, NotADirectoryError):  # a process that has finished removes it
            stored = {"polyp_size": 1.0, "masks": False} | _read_recipe(folder / name)
            if other := {key: stored.get(key) for key, value in recipe.items() if stored.get(key) != value}:
                raise ValueError(
                    f"{folder} holds a phantom made with {other} instead of "
                    f"{ {key: recipe[key] for key in other} }: choose another folder or delete it."
                )
            return name == _DONE
    return False


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_patiently(Path.read_bytes, path))
        return unsealed(content) if isinstance(content, dict) else {}  # another program's
    except BadInput:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{path} is damaged ({error}); delete it and run the command that rendered this phantom, "
            "unchanged: its clips stay."
        ) from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which is free again when the process ends, however it ends."""
    with open(folder / _LOCK, "w") as file:
        with suppress(OSError):  # a file system without locks: as if there were no other process
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _runner(workers: int) -> Iterator[Callable[[list[_Clip]], Iterator[None]]]:
    """A function that writes clips, here or in processes, and yields once after each."""
    if workers <= 1:
        yield lambda clips: (clip.write() for clip in clips)
        return
    # Started afresh, not forked: OpenCV's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            yield lambda clips: (job.result() for job in as_completed(pool.submit(c.write) for c in clips))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
