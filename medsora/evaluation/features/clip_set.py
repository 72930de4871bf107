"""The clips of one side: chosen by one rule for real and generated, read, identified by content.

The rule: every usable video is cut into clips that do not overlap; if these are more than requested, as many
are drawn without replacement by a seeded permutation. So each clip counts once, and a clip never changes.
`Pick` names it and the rules of published protocols.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medsora.config.crop import Crop
from medsora.data.checking.check import CheckReport, SourceReport, check_folder
from medsora.data.checking.copies import pairs_alike
from medsora.data.clips import CLIP_TIME_LIMIT_S
from medsora.data.labels import read_labels
from medsora.data.phantom.corpus import phantom_recipe
from medsora.data.reading.find import Source
from medsora.data.reading.resize import height_width, resize_and_crop
from medsora.errors import BadInput, one_line
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED
from medsora.runtime.digests import sha256


class Resize(NamedTuple):
    """Resizing of frames: words that identify it, and the function (frame, size) -> frame."""

    words: str
    apply: Callable[[np.ndarray, int | tuple[int, int]], np.ndarray]


class Pick(Enum):
    """Choice of windows for clips: the module's rule or, for videos in order of their names, those below."""

    DRAWN = "drawn"
    FIRST = "first"  # one clip per video
    RANDOM = "random"  # one of each video, by seed
    EVERY = "every"


RESIZE = Resize(
    "Pillow bilinear with antialiasing, scaled to cover, cropped in the middle; untouched at equal size",
    resize_and_crop,
)
DEFAULT_CROP = "auto"  # the same default as in training
REFERENCES = ("real", "phantom", "phantom (held out)")
LOSSLESS_CODECS = {"ffv1", "png", "apng", "bmp", "ppm", "tif", "tiff", "rawvideo", "huffyuv", "utvideo"}
READ_THREADS = 4


@dataclass(frozen=True)
class ClipSet:
    """Clips of F frames at `interval`, or with `by_time` so many per second, brought to `size` (H, W).

    Clip i is `clips[i]` = (source, start).
    """

    root: Path
    report: CheckReport
    clips: tuple[tuple[SourceReport, int], ...]
    available: int
    frames: int
    interval: int
    size: tuple[int, int]
    seed: int
    resize: Resize
    by_time: float | None
    pick: Pick

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def reference(self) -> str:
        """Name of these clips in reports as the reference of generated ones, one of `REFERENCES`."""
        seed = phantom_recipe(self.root).get("seed")  # another program's file may hold anything
        return REFERENCES[2 if seed == HELD_OUT_SEED else 1 if isinstance(seed, int) else 0]

    def name(self, index: int) -> str:
        """Return what reports call the clip: "folder/file.mp4@START"."""
        source, start = self.clips[index]
        return one_line(f"{source.source.name}@{start}")

    def read(self, index: int) -> np.ndarray:
        """Return clip `index` as uint8 (F, H, W, 3). Raises `UnreadableVideo`, a `ValueError`."""
        source, start = self.clips[index]
        clip = start, self.frames, self.interval, self.size
        return source.read(*clip, time_limit=CLIP_TIME_LIMIT_S, resize=self.resize.apply)

    def reduced_to(self, count: int | None) -> ClipSet:
        """Return the clips that `choose_clips` chooses from the same folder with another, smaller `count`."""
        if self.pick is not Pick.DRAWN:
            return replace(self, clips=self.clips[:count])
        every = [(source, window.start) for source in self.report.usable for window in source.windows]
        order = np.random.default_rng(self.seed).permutation(len(every))
        return replace(self, clips=tuple(every[i] for i in np.sort(order[:count])))

    @property
    def videos(self) -> np.ndarray:
        """The number of each clip's video, from 0 on: int (clips,)."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(source.source.name, len(numbers)) for source, _ in self.clips])

    def read_ahead(self, indices: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield (indices, clips uint8 (B, F, H, W, 3)) batch by batch; a few clips are decoded ahead."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            futures = ((index, pool.submit(self.read, index)) for index in indices)
            running = list(islice(futures, batch_size + READ_THREADS))
            while running:
                batch, running = running[:batch_size], running[batch_size:]
                clips = np.stack([future.result() for _, future in batch])
                running += islice(futures, batch_size)
                yield [index for index, _ in batch], clips

    @cached_property
    def source_digests(self) -> dict[str, str]:
        """SHA-256 of the bytes of every source that gives a clip, by name."""
        used = {source.source.name: source.source for source, _ in self.clips}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return dict(zip(used, pool.map(_digest, used.values()), strict=True))

    def shared_with(self, other: ClipSet) -> dict[str, str]:
        """Return the sources that one of `other` shows, too, and which: the same bytes, or re-encoded."""
        used = [
            {source.source.name: source.content for source, _ in clips.clips}.items()
            for clips in (self, other)
        ]
        names = {digest: name for name, digest in other.source_digests.items()}
        same = {name: names[d] for name, d in self.source_digests.items() if d in names}
        return dict(pairs_alike(*used)) | same

    def digest(self) -> str:
        """Return a SHA-256 of all that decides the clips' pixels; names and paths do not matter."""
        pace = self.interval if self.by_time is None else f"{self.by_time:g} per second"
        state = hashlib.sha256(f"{self.frames}/{pace}/{self.size}/{self.resize.words}".encode())
        for source, start in self.clips:
            state.update(f"/{self.source_digests[source.source.name]}@{start}".encode())
            if any(source.margins):
                state.update(f"-{source.margins}".encode())
            if source.scan.applied:
                state.update(f"-{source.scan.applied}".encode())
        return state.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return the protocol's entry of this side; sizes and codecs are those of the files."""
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
            "every_nth_frame": self.interval if self.by_time is None else None,
            "frames_per_second": self.by_time,
            "borders_cut_off": self.cropped,
            "applied": {
                source.source.name: list(source.scan.applied) for source in used if source.scan.applied
            },
            "source_sizes": _counted(f"{source.scan.width}x{source.scan.height}" for source in used),
            "codecs": _counted(source.scan.codec for source in used),
            "content_sha256": self.digest(),
        }

    @property
    def rate(self) -> float | None:
        """Frames per second of the clips, the median over them; None for folders of pictures."""
        if self.by_time is not None:
            return self.by_time
        rates = [source.scan.fps / self.interval for source, _ in self.clips if source.scan.fps]
        return float(np.median(rates)) if rates else None

    @property
    def cropped(self) -> dict[str, str]:
        """Cropping of the sources used, in words, by name; the others are not cropped."""
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
    pick: Pick = Pick.DRAWN,
    resize: Resize = RESIZE,
    rate: float | None = None,
    label: tuple[str, str] | None = None,
    generated: bool = False,
) -> ClipSet:
    """Choose at most `count` clips of `frames` frames below `root`; None takes all.

    `pick` sets which windows, `resize` how their frames are brought to `size`.
    With `rate`, frames are taken by time, so many per second, and `interval` does not count.
    `stride` source frames lie between two clips of a video, by default so many that they do not overlap.
    `crop` "auto" cuts each video's own black borders off first, as training does; "none" keeps whole frames;
    parts (top, bottom, left, right) are cut off every frame.
    `label` is (source, name): only videos of that label, by the `source` of `read_labels`.
    No clip crosses a hard cut of a recording, where another shot begins; in a `generated` video it is a fault
    of the model, and the clip counts.
    Raises `BadInput` with one sentence if there is no folder or no usable clip in it, and for a label that no
    video has.
    """
    pace = {"interval": interval} if rate is None else {"interval": None, "rate": rate}
    report = check_folder(root, frames=frames, clip_stride=stride, crop=crop, cross_cuts=generated, **pace)
    report.require_clips()
    if label is not None:
        report = _labelled(report, *label)
    random = np.random.default_rng(seed)
    clips: list[tuple[SourceReport, int]] = []
    for source in report.usable:
        starts = [window.start for window in source.windows]
        if pick is Pick.FIRST:
            starts = starts[:1]
        elif pick is Pick.RANDOM:
            starts = [starts[random.integers(len(starts))]]
        clips += [(source, start) for start in starts]
    of_clips = frames, interval, height_width(size), seed, resize, rate, pick
    return ClipSet(Path(root), report, tuple(clips), len(clips), *of_clips).reduced_to(count)


def _labelled(report: CheckReport, source: str, name: str) -> CheckReport:
    labels = read_labels(source, report.root, [one.source.name for one in report.reports])
    if name not in labels.names:
        raise BadInput(
            f"no video in {report.root} has the label {name!r}; {source} names {', '.join(labels.names)}."
        )
    number = labels.names.index(name)
    kept = tuple(one for one in report.reports if labels.of_video.get(one.source.name) == number)
    report = replace(report, reports=kept)
    report.require_clips()
    return report


def _digest(source: Source) -> str:
    if source.pictures is None:
        return sha256(source.path)
    state = hashlib.sha256()
    for picture in source.pictures:
        state.update(sha256(source.path / picture).encode())
    return state.hexdigest()


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
