"""What an item of the clip dataset is, decided before any file is read: window, start, flip, joint images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


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
    random: np.random.Generator,
    count: int,
    runs: Sequence[Sequence[tuple[int, int]]],
    video: int,
    clip: tuple[int, int],
) -> tuple[ImageSource, ...]:
    """Draw `count` joint images for a clip that covers the frames `clip` = (start, stop) of video `video`.

    `runs[v]` are the stretches of frames that decode in video v. The images come from different other videos
    as long as these last, else with replacement; if there is no other video, from this one outside the clip,
    and from anywhere in it if the clip is all there is.
    """
    if count == 0:
        return ()
    others = len(runs) - 1
    if others == 0:
        outside = [part for run in runs[video] for part in _without(run, clip)] or runs[video]
        return tuple(ImageSource(video, _draw_frame(random, outside)) for _ in range(count))
    picked = random.choice(others, size=count, replace=others < count)
    videos = [int(other) + (other >= video) for other in picked]
    return tuple(ImageSource(other, _draw_frame(random, runs[other])) for other in videos)


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
