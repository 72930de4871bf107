"""The clips of one side: chosen by one rule for real and generated, read, identified by content.

The rule: every usable video is cut into clips that do not overlap; if these are more than asked for, as many
are drawn without replacement by a seeded permutation. So each clip counts once, and a clip never changes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medsora.config.crop import Crop
from medsora.data.checking.check import CheckReport, SourceReport, check_folder
from medsora.data.clips import CLIP_TIME_LIMIT_S
from medsora.data.reading.find import Source
from medsora.data.reading.resize import height_width
from medsora.data.reading.video_io import read_frames
from medsora.errors import one_line
from medsora.runtime.digests import sha256

RESIZE = "Pillow bilinear with antialiasing, scaled to cover, cropped in the middle; untouched at equal size"
DEFAULT_CROP = "auto"  # as in training
LOSSLESS_CODECS = {"ffv1", "png", "apng", "bmp", "ppm", "tif", "tiff", "rawvideo", "huffyuv", "utvideo"}
READ_THREADS = 4


@dataclass(frozen=True)
class ClipSet:
    """Clips of F frames at `interval`, brought to `size` (H, W); clip i is `clips[i]` = (source, start)."""

    root: Path
    report: CheckReport
    clips: tuple[tuple[SourceReport, int], ...]
    available: int
    frames: int
    interval: int
    size: tuple[int, int]
    seed: int
    crop: Crop

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """Return what reports call the clip: "folder/file.mp4@START"."""
        source, start = self.clips[index]
        return one_line(f"{source.source.name}@{start}")

    def read(self, index: int) -> np.ndarray:
        """Return clip `index` as uint8 (F, H, W, 3). Raises `UnreadableVideo`, a `ValueError`."""
        source, start = self.clips[index]
        return read_frames(
            source.source.path,
            start,
            self.frames,
            self.interval,
            self.size,
            seek_points=source.scan.seek_points,
            margins=source.margins,
            interpretation=source.scan.interpretation,
            pictures=source.source.pictures,
            time_limit=CLIP_TIME_LIMIT_S,
        )

    def read_ahead(self, indices: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield (indices, clips uint8 (B, F, H, W, 3)) batch by batch; a few clips are decoded ahead."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            waiting = iter(indices)
            running: list[tuple[int, Future]] = []
            batch: list[tuple[int, np.ndarray]] = []
            while True:
                ahead = batch_size + READ_THREADS - len(running)
                running += [(index, pool.submit(self.read, index)) for index in islice(waiting, ahead)]
                if not running:
                    break
                index, future = running.pop(0)
                batch.append((index, future.result()))
                if len(batch) == batch_size or not running:
                    yield [index for index, _ in batch], np.stack([clip for _, clip in batch])
                    batch = []

    @cached_property
    def source_digests(self) -> dict[str, str]:
        """SHA-256 of the bytes of every source that gives a clip, by name."""
        used = {source.source.name: source.source for source, _ in self.clips}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return dict(zip(used, pool.map(_digest, used.values()), strict=True))

    def digest(self) -> str:
        """Return a SHA-256 of all that decides the clips' pixels; names and places do not matter."""
        state = hashlib.sha256(f"{self.frames}/{self.interval}/{self.size}/{RESIZE}".encode())
        for source, start in self.clips:
            state.update(f"/{self.source_digests[source.source.name]}@{start}".encode())
            if any(source.margins):
                state.update(f"-{source.margins}".encode())
            if source.scan.applied:
                state.update(f"-{source.scan.applied}".encode())
        return state.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what the protocol says about this side; sizes and codecs are those of the files."""
        used = {source.source.name: source for source, _ in self.clips}.values()
        return {
            "folder": str(self.root),
            "videos_found": len(self.report.reports),
            "videos_usable": len(self.report.usable),
            "videos_used": len(used),
            "left_out": {bad.source.name: bad.problem for bad in self.report.bad}
            | self.report.unlisted
            | {f"{some.name}: {some.kind}": f"{some.count} {some.words()}" for some in self.report.left_out},
            "clips_available": self.available,
            "clips_used": len(self),
            "every_nth_frame": self.interval,
            "borders_cut_off": self.cropped,
            "applied": {
                source.source.name: list(source.scan.applied) for source in used if source.scan.applied
            },
            "source_sizes": _counted(f"{source.scan.width}x{source.scan.height}" for source in used),
            "codecs": _counted(source.scan.codec for source in used),
            "content_sha256": self.digest(),
        }

    @property
    def cropped(self) -> dict[str, str]:
        """What is cut off the sources used, in words, by name; of the others nothing is."""
        return {source.source.name: words for source, _ in self.clips if (words := source.crop_words)}

    @property
    def compressed(self) -> bool:
        """Whether any of the files used is coded with loss."""
        return any(source.scan.codec not in LOSSLESS_CODECS for source, _ in self.clips)


def choose_clips(
    root: str | Path,
    *,
    frames: int,
    size: int | tuple[int, int],
    interval: int,
    count: int | None,
    seed: int,
    crop: Crop = DEFAULT_CROP,
    stride: int | None = None,
) -> ClipSet:
    """Choose at most `count` clips of `frames` frames below `root` by the module's rule; None takes all.

    `stride` source frames lie between two clips of a video, by default so many that they do not overlap.
    `crop` "auto" cuts each video's own black borders off first, as training does; "none" keeps whole frames;
    parts (top, bottom, left, right) are cut off every frame.
    Raises `BadInput` with one sentence if there is no folder or no usable clip in it.
    """
    report = check_folder(root, frames=frames, interval=interval, clip_stride=stride, crop=crop)
    report.require_clips()
    everything = [(source, window.start) for source in report.usable for window in source.windows]
    picked = np.sort(np.random.default_rng(seed).permutation(len(everything))[:count])
    clips = tuple(everything[i] for i in picked)
    return ClipSet(
        Path(root), report, clips, len(everything), frames, interval, height_width(size), seed, crop
    )


def _digest(source: Source) -> str:
    if source.pictures is None:
        return sha256(source.path)
    state = hashlib.sha256()
    for picture in source.pictures:
        state.update(sha256(source.path / picture).encode())
    return state.hexdigest()


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
