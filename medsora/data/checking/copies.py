"""Videos that show the same: same bytes, same frames in another container, a video beside its own frames.

Black borders do not count: a video is compared as it is, and, where it has borders, without them.

A scan keeps small grey thumbnails of a few frames, spread evenly. They survive re-encoding and scaling, which
change a thumbnail's pixel by a level or two. Each video is compared with the first of every group whose mean
brightness is close, found through a grid, so the work does not grow with the square of the number of videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

from medsora.data.split import merge_groups

THUMBNAILS, SIDE_PX = 8, 6  # thumbnails per video, and the side of each
# Grey levels (0-255), the mean over a thumbnail's pixels; every thumbnail must be as close. H.264 at CRF 35
# changes 64x64 phantoms by up to 4.8; two different phantoms differ by 18 and more.
MAX_DIFFERENCE = 6.0
MAX_BRIGHTER = 2.5  # maximum difference of the mean over a quadrant and over time, in grey levels
MIN_CONTRAST = 4.0  # standard deviation in grey levels; flatter videos must be identical to be copies
MAX_FRAMES_APART = 0.02  # share of the frames that a copy may lack (at least one frame)
CELL_LEVELS = 5.0  # side of the grid's cells, in grey levels of a quadrant's mean


class Content(NamedTuple):
    """Fingerprint by which copies of a video are found: number of frames, hexadecimal thumbnails.

    `inside` are those of what black borders enclose; empty without borders.
    """

    frames: int
    thumbnails: str
    inside: str = ""


def thumbnails(frames: Sequence[np.ndarray]) -> str:
    """Return THUMBNAILS grey pictures of SIDE_PX x SIDE_PX as hexadecimal digits; empty without frames.

    `frames`, uint8 (h, w, 3), are spread evenly over one video; if there are fewer, some come twice.
    """
    if not frames:
        return ""
    picked = [frames[round(number)] for number in np.linspace(0, len(frames) - 1, THUMBNAILS)]
    pictures = [cv2.resize(frame, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for frame in picked]
    return (np.stack(pictures) @ np.float32([0.299, 0.587, 0.114])).round().astype(np.uint8).tobytes().hex()


def find_copies(contents: Iterable[tuple[str, Content]]) -> list[tuple[str, ...]]:
    """Return the groups of two and more names whose contents are alike, each in the order given."""
    contents = list(contents)
    whole = [(content.frames, content.thumbnails) for _, content in contents]
    inside = [(content.frames, content.inside or content.thumbnails) for _, content in contents]
    alike = [*_groups(whole), *(_groups(inside) if inside != whole else ())]
    merged = merge_groups(range(len(contents)), alike)
    return [tuple(contents[number][0] for number in group) for group in merged if len(group) > 1]


def pairs_alike(
    ones: Iterable[tuple[str, Content]], others: Iterable[tuple[str, Content]]
) -> list[tuple[str, str]]:
    """Return a pair of names for each of `ones` that is a copy of one of `others`."""
    groups = find_copies([*(("1" + name, c) for name, c in ones), *(("2" + name, c) for name, c in others)])
    return [
        (name[1:], next(other[1:] for other in group if other[0] == "2"))
        for group in groups
        for name in group
        if name[0] == "1" and any(other[0] == "2" for other in group)
    ]


def _groups(fingerprints: Sequence[tuple[int, str]]) -> list[list[int]]:
    """Return the numbers of fingerprints (frames, thumbnails) that are alike, in groups of two and more."""
    groups: list[list[int]] = []
    equal: dict[tuple[int, str], list[int]] = {}
    cells: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)  # cell -> numbers of groups
    firsts: list[tuple[int, np.ndarray]] = []  # per group: frames, thumbnails (THUMBNAILS, pixels)
    for video, (frames, digits) in enumerate(fingerprints):
        if not digits:
            continue
        if (frames, digits) in equal:
            equal[frames, digits].append(video)
            continue
        pictures = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(THUMBNAILS, -1).astype(np.int16)
        quadrants = _quadrant_means(pictures)
        number = None
        if pictures.std(axis=1).mean() >= MIN_CONTRAST:
            near = [group for cell in _cells_around(quadrants) for group in cells.get(cell, ())]
            number = _first_alike(frames, pictures, near, firsts)
            if number is None:
                cells[tuple(int(mean // CELL_LEVELS) for mean in quadrants)].append(len(groups))
        if number is None:
            number = len(groups)
            groups.append([])
            firsts.append((frames, pictures))
        groups[number].append(video)
        equal[frames, digits] = groups[number]
    return [group for group in groups if len(group) > 1]


def _first_alike(
    frames: int, pictures: np.ndarray, near: Sequence[int], firsts: Sequence[tuple[int, np.ndarray]]
) -> int | None:
    """Return the lowest of the groups `near` whose first video is alike, or None."""
    near = [
        group
        for group in sorted(near)
        if abs(frames - firsts[group][0]) <= max(1, MAX_FRAMES_APART * max(frames, firsts[group][0]))
    ]
    if not near:
        return None
    differences = np.abs(np.stack([firsts[group][1] for group in near]) - pictures).mean(axis=2).max(axis=1)
    return next((g for g, d in zip(near, differences, strict=True) if d <= MAX_DIFFERENCE), None)


def _quadrant_means(pictures: np.ndarray) -> list[float]:
    """Return the mean grey level of each quarter of the picture over all thumbnails."""
    half = SIDE_PX // 2
    return pictures.reshape(THUMBNAILS, 2, half, 2, half).mean(axis=(0, 2, 4)).ravel().tolist()


def _cells_around(quadrants: Sequence[float]) -> Iterable[tuple[int, ...]]:
    """Return the cells that may hold entries that differ by MAX_BRIGHTER or less in every quadrant."""
    spans = [
        range(int((mean - MAX_BRIGHTER) // CELL_LEVELS), int((mean + MAX_BRIGHTER) // CELL_LEVELS) + 1)
        for mean in quadrants
    ]
    return product(*spans)
