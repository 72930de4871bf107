"""Choice of a clip dataset's item before any file is read: window, start, flip, joint images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medsora.data.checking.scan import Scan

NEAR = 48  # maximum distance in frames of a joint image from a seek point, so that it decodes quickly


class ImageSource(NamedTuple):
    """One picture that may be a joint image: the number of its video in the dataset, and of its frame."""

    video: int
    frame: int


@dataclass(frozen=True)
class ClipChoice:
    """Everything that decides an item: the window's index, the video, the first frame, flip and images."""

    index: int
    video: int
    start: int
    flipped: bool
    images: tuple[ImageSource, ...]


def draw_images(
    random: np.random.Generator, count: int, scans: Sequence[Scan], video: int, clip: tuple[int, int]
) -> tuple[ImageSource, ...]:
    """Draw `count` joint images for a clip that covers the frames `clip` = (start, stop) of video `video`.

    The images come from different other videos as long as these last, else with replacement; if there is no
    other video, from this one outside the clip, and from anywhere in it if the clip is all there is.
    """
    if count == 0:
        return ()
    others = len(scans) - 1
    if others == 0:
        runs = scans[video].runs()
        outside = [part for run in runs for part in _without(run, clip)] or runs
        return tuple(ImageSource(video, _draw_frame(random, outside)) for _ in range(count))
    picked = random.choice(others, size=count, replace=others < count)
    videos = [int(other) + (other >= video) for other in picked]
    frames = [_draw_frame(random, scans[other].runs()) for other in videos]
    frames = [_near_entry(scans[other], frame) for other, frame in zip(videos, frames, strict=True)]
    return tuple(map(ImageSource, videos, frames))


def _near_entry(scan: Scan, frame: int) -> int:
    """Return `frame`, moved closer to the entry before it where it lies far behind one, never to damage."""
    if not scan.seek_points:
        return frame
    before = bisect_right(scan.seek_points, frame, key=lambda point: point.frame)
    entry = scan.seek_points[before - 1].frame if before else 0
    closer = entry + (frame - entry) % NEAR
    return frame if closer in scan.broken else closer


def _without(run: tuple[int, int], clip: tuple[int, int]) -> list[tuple[int, int]]:
    parts = [(run[0], min(run[1], clip[0])), (max(run[0], clip[1]), run[1])]
    return [(start, stop) for start, stop in parts if start < stop]


def _draw_frame(random: np.random.Generator, runs: Sequence[tuple[int, int]]) -> int:
    number = int(random.integers(sum(stop - start for start, stop in runs)))
    for start, stop in runs:
        if number < stop - start:
            return start + number
        number -= stop - start
    raise AssertionError("the number drawn lies within the runs")
