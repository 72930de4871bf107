"""Clips and frames of a downstream task, with labels, and no test frame among the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from medsora.data.checking.check import SourceReport, check_folder
from medsora.data.checking.copies import Content, pairs_alike
from medsora.data.labels import FOLDERS, find_table, read_labels
from medsora.data.phantom.corpus import LABELS_NAME
from medsora.data.reading.margins import NO_MARGINS
from medsora.data.video_table import read_video_table
from medsora.errors import BadInput

MAX_CLIP_BYTES = 4 << 30  # a study keeps all its clips in memory
READ_THREADS = 4
MIN_CONTRAST = 4.0  # grey levels (0-255); flatter frames are equal in unrelated videos
THUMBNAIL_PX = 32  # side to which single frames are reduced to find copies
MAX_DIFFERENCE = 2.0  # grey levels (0-255) between copies, averaged over a thumbnail
UNKNOWN = Content(1, "")  # single frames have no video to compare
# Clips of the code published with Endora: 8 frames, 32 apart at 30 frames per second, from the beginning.
PUBLISHED_SPAN_S, PUBLISHED_SHORT_SIDE_PX = 8 * 32 / 30, 320

Item = TypeVar("Item")


class Reading(NamedTuple):
    """Reading of videos as clips of `frames` frames.

    By default evenly spread over a video's longest undamaged shot, resized to `size` x `size`; `published`
    as the code published with Endora reads them, with a short side of 320 pixels.
    """

    frames: int
    size: int
    published: bool = False


@dataclass(frozen=True)
class Videos:
    """The usable videos of a folder by name, in natural order; `known` are those that cannot be used, too."""

    root: Path
    usable: Mapping[str, SourceReport]
    known: tuple[str, ...]

    @cached_property
    def frame_positions(self) -> np.ndarray:
        """The number of the video and of the frame of every undamaged frame, (n, 2)."""
        runs = [(k, *run) for k, source in enumerate(self.usable.values()) for run in source.scan.runs()]
        return np.concatenate([[(k, number) for number in range(*run)] for k, *run in runs])

    def labels(self, source: str | None) -> dict[str, str]:
        """Return the labelled videos' labels in the order of their list.

        `source` is a CSV with the columns file and label, a list of lines `name.mp4,label` as PolypDiag's, or
        "folders"; by default `labels.csv` in the folder if it is there, else "folders".
        Raises `BadInput` as `read_labels` does.
        """
        if source is None:
            source = str(self.root / LABELS_NAME) if (self.root / LABELS_NAME).is_file() else FOLDERS
        labels = read_labels(source, self.root, list(self.usable), known=self.known)
        order: Iterable[str] = self.usable
        if source != FOLDERS:
            table = find_table(source, self.root)
            rows = read_video_table(table, "label", ("label",), self.known)
            order = dict.fromkeys(name for _, name, _ in rows)
        return {name: labels.names[labels.of_video[name]] for name in order if name in labels.of_video}


def find_videos(root: str | Path, crop: str = "auto") -> Videos:
    """Return the videos below `root`; raises `BadInput` if there is no folder or no usable video."""
    report = check_folder(root, frames=1, interval=1, crop=crop)
    report.require_clips()
    known = tuple(each.source.name for each in report.reports)
    return Videos(Path(root), {each.source.name: each for each in report.usable}, known)


def read_unlabelled_frames(folders: Mapping[str, Path], most: int, size: int) -> dict[str, Samples]:
    """Return equally many frames of each folder, by title: at most `most`, evenly spread over all its frames.

    Borders stay, as they do in labelled pictures.
    """
    videos = {title: find_videos(folder, crop="none") for title, folder in folders.items()}
    count = min([most, *(len(of_folder.frame_positions) for of_folder in videos.values())])
    return {title: _read_spread(of_folder, count, size) for title, of_folder in videos.items()}


def read_unlabelled(folders: Mapping[str, Path], most: int, reading: Reading) -> dict[str, Samples]:
    """Return equally many unlabelled clips of each folder, by title: at most `most`, one per video.

    The videos are evenly spread over the sorted folder, whose sub-folders may be labels.
    """
    videos = {title: find_videos(folder) for title, folder in folders.items()}
    count = min([most, *(len(of_folder.usable) for of_folder in videos.values())])
    names = {title: list(of_folder.usable) for title, of_folder in videos.items()}
    chosen = {title: [of[k] for k in evenly(count, len(of))] for title, of in names.items()}
    return {title: read_clips(of_folder, chosen[title], reading) for title, of_folder in videos.items()}


def evenly(count: int, of: int) -> np.ndarray:
    """Return `count` of the numbers 0 to `of` - 1, evenly spread and rising."""
    return np.linspace(0, of - 1, count).round().astype(int)


@dataclass(frozen=True)
class Samples:
    """Clips, uint8 (F, h, w, 3), of one side of a study, with their names."""

    root: Path
    names: tuple[str, ...]
    values: list[np.ndarray]
    contents: tuple[Content, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def frame_digests(self) -> dict[bytes, str]:
        """The name of the sample that holds each frame, by the frame's digest; flat frames are left out."""
        return {
            hashlib.sha256(frame.tobytes()).digest(): name
            for name, value in zip(self.names, self.values, strict=True)
            for frame in value
            if frame.std() >= MIN_CONTRAST
        }

    @cached_property
    def thumbnails(self) -> np.ndarray:
        """Small pictures of single frames, int16 (n, h, w, 3), by which copies are found; none of clips."""
        side = (THUMBNAIL_PX, THUMBNAIL_PX)
        frames = [value[0] for value in self.values if len(value) == 1]
        small = [cv2.resize(frame, side, interpolation=cv2.INTER_AREA) for frame in frames]
        return np.array(small, np.int16).reshape(-1, *side, 3)

    def digest(self) -> str:
        """Return a SHA-256 of all pixels."""
        state = hashlib.sha256()
        for value in self.values:
            state.update(f"{value.shape}".encode())
            state.update(np.ascontiguousarray(value))
        return state.hexdigest()


def read_clips(videos: Videos, names: Sequence[str], reading: Reading) -> Samples:
    """Read one clip of each named video. Raises `BadInput` if they do not fit into memory or a read fails."""
    sources = [videos.usable[name] for name in names]
    values = read_all(sources, lambda source: _read_clip(source, reading), videos.root)
    return Samples(videos.root, tuple(names), values, tuple(source.content for source in sources))


def _read_spread(videos: Videos, count: int, size: int) -> Samples:
    chosen = videos.frame_positions[evenly(count, len(videos.frame_positions))]
    names = list(videos.usable)
    taken = {names[k]: chosen[chosen[:, 0] == k, 1].tolist() for k in np.unique(chosen[:, 0])}

    def read(name: str) -> np.ndarray:
        return videos.usable[name].read(0, 1, None, size, numbers=taken[name])

    values = [frame[None] for frames in read_all(list(taken), read, videos.root) for frame in frames]
    titles = tuple(f"{name}, frame {number}" for name, numbers in taken.items() for number in numbers)
    return Samples(videos.root, titles, values, (UNKNOWN,) * len(titles))


def read_all(items: Sequence[Item], read: Callable[[Item], np.ndarray], where: Path) -> list[np.ndarray]:
    """Read the items in threads and in order; `where` names them if they exceed `MAX_CLIP_BYTES` together."""
    values: list[np.ndarray] = []
    try:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for start in range(0, len(items), READ_THREADS):
                values += pool.map(read, items[start : start + READ_THREADS])
                needed = sum(value.nbytes for value in values) * len(items) / len(values)
                if needed > MAX_CLIP_BYTES:
                    raise ValueError(
                        f"{len(items)} samples need about {needed / 2**30:.1f} GiB of memory, but a study "
                        f"may use {MAX_CLIP_BYTES / 2**30:.0f}; take fewer, or smaller ones."
                    )
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"{where}: {error}") from error
    return values


def published_frames(total: int, fps: float, count: int = 8) -> np.ndarray:
    """Return the frames that the published code reads of a video; those beyond its end are its last."""
    span = PUBLISHED_SPAN_S * count / 8 * fps
    return np.linspace(0, span - 1, count).clip(0, total - 1).astype(int)


def _read_clip(source: SourceReport, reading: Reading) -> np.ndarray:
    start, stop = max(source.scan.runs(), key=lambda run: run[1] - run[0])
    size, options = reading.size, {}
    if reading.published:
        numbers = published_frames(stop - start, source.scan.fps or 30.0, reading.frames)
        size, options = PUBLISHED_SHORT_SIDE_PX, {"margins": NO_MARGINS, "resize": to_short_side}
    else:
        numbers = evenly(reading.frames, stop - start)
    different, positions = np.unique(start + numbers, return_inverse=True)
    return source.read(0, 1, None, size, numbers=different.tolist(), **options)[positions]


def to_short_side(image: np.ndarray, side: int) -> np.ndarray:
    """Scale uint8 (h, w, 3) so that its shorter side has `side` pixels, bilinear with antialiasing."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def refuse_leaks(test: Samples, labelled: Samples, unlabelled: Mapping[str, Samples]) -> None:
    """Raise `BadInput` if a test sample is also among the others.

    Same means a frame with the same pixels, or a copy by its thumbnails, re-encoded perhaps, of the video or
    of a single frame.
    """
    for role, samples in (("the labelled", labelled), *unlabelled.items()):
        pairs = pairs_alike(*(zip(side.names, side.contents, strict=True) for side in (test, samples)))
        shared = test.frame_digests.keys() & samples.frame_digests.keys()
        pairs += [(test.frame_digests[frame], samples.frame_digests[frame]) for frame in shared]
        pairs += [
            (name, samples.names[number])
            for name, small in zip(test.names, test.thumbnails, strict=False)
            if small.std() >= MIN_CONTRAST
            for number in np.flatnonzero(np.abs(samples.thumbnails - small).mean((1, 2, 3)) <= MAX_DIFFERENCE)
        ]
        if leaks := sorted(set(pairs)):
            ours, theirs = leaks[0]
            more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
            raise BadInput(
                f"{test.root}: the test sample '{ours}' is also among {role} ('{theirs}' of {samples.root})"
                f"{more}; testing on training data is not valid: take it out of one of them."
            )
