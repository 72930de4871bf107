"""What stands still in a video while the scene moves: black borders, and text or marks burnt into the frames.

Names, dates and hospital logos are the same sharp, bright pixels in frame after frame. A model would learn
them, and a name is nobody's to learn: the check warns of them. Black borders carry nothing and are cropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SAMPLES = 24  # frames, evenly spaced over a video
LONGEST_SIDE = 1024  # pixels; larger frames are looked at reduced to this
FEWEST_SAMPLES = 8  # below, nothing can be said to stand still

BLACK = 24  # of 255: a border's brightest pixels, compression's noise included
THIN = 0.005  # part of a side; narrower borders are left
LEAST_LEFT = 0.25  # part of a side that must remain, or the video is dark rather than bordered

BRIGHT, STILL, SHARP = 150, 24, 80  # grey levels: of a mark, of its change over time, against what is around
MOVING, LEAST_MOVING = 12, 0.3  # grey levels, and the part of the picture that must change by them
FEWEST_PIXELS, LOWEST = 20, 5  # of a mark, at the size looked at
THICK, RIM = 0.04, 0.03  # of the shorter side: the field of view is thicker than letters; its rim is no mark

Margins = tuple[float, float, float, float]  # top, bottom, left, right: parts of height, height, width, width
NO_MARGINS: Margins = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StillMarks:
    """What `find_still_marks` saw: black borders, and the boxes of burnt-in marks.

    `marks` are boxes (top, bottom, left, right), parts of height and width counted from the top left.
    """

    margins: Margins = NO_MARGINS
    marks: tuple[Margins, ...] = ()

    def marks_inside(self, margins: Margins) -> tuple[Margins, ...]:
        """Return the marks that are left when `margins` are cropped."""
        top, bottom, left, right = margins
        return tuple(
            box
            for box in self.marks
            if box[1] > top and box[0] < 1 - bottom and box[3] > left and box[2] < 1 - right
        )


class EvenSamples:
    """Keeps some SAMPLES frames, evenly spaced, of a stream whose length nobody knows beforehand."""

    def __init__(self) -> None:
        self._spacing = 1
        self._kept: list[np.ndarray] = []

    def wants(self, number: int) -> bool:
        """Return whether frame `number`, counted from 0 without gaps, is to be given to `add`."""
        return number % self._spacing == 0

    def add(self, grey: np.ndarray) -> None:
        """Keep a frame's grey values, uint8 (h, w), reduced to LONGEST_SIDE; another size than before starts
        anew.
        """
        scale = LONGEST_SIDE / max(grey.shape)
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in grey.shape)
            grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        if self._kept and self._kept[0].shape != grey.shape:
            self._kept.clear()
        self._kept.append(grey)
        if len(self._kept) >= 2 * SAMPLES:
            self._kept, self._spacing = self._kept[::2], 2 * self._spacing

    def still_marks(self) -> StillMarks:
        """Return what stands still in the frames kept."""
        return find_still_marks(np.stack(self._kept)) if self._kept else StillMarks()


def find_still_marks(greys: np.ndarray) -> StillMarks:
    """Return borders and marks of `greys`, uint8 (T, h, w), frames spread over one video.

    Marks on a black border do not keep it from being one: it is cropped with them. One that reaches from
    there into the picture by less than half moves the border's edge.
    """
    ordered = np.sort(np.moveaxis(greys, 0, -1))
    low, median, high = (ordered[..., round(part * (len(greys) - 1))] for part in (0.05, 0.5, 0.95))
    mask, marks = _burnt_in(low, median, high) if len(greys) >= FEWEST_SAMPLES else (False, ())
    return StillMarks(_with_marks(_margins(np.where(mask, 0, high)), marks), marks)


def _with_marks(margins: Margins, marks: tuple[Margins, ...]) -> Margins:
    """Return `margins` widened so that none cuts a mark of which more than half lies on it."""
    widened = list(margins)
    for box in marks:
        # Both edges of the box as seen from the side in question: the far one is where the mark ends.
        from_sides = ((box[0], box[1]), (1 - box[1], 1 - box[0]), (box[2], box[3]), (1 - box[3], 1 - box[2]))
        for side, (near, far) in enumerate(from_sides):
            if near < margins[side] and (near + far) / 2 <= margins[side]:
                widened[side] = max(widened[side], far)
    return tuple(widened)


def _margins(peak: np.ndarray) -> Margins:
    """Return the borders of the brightest values (h, w) that pixels take, flashes left out."""
    height, width = peak.shape
    top, bottom = _dark_ends(peak)
    left, right = _dark_ends(peak[top : height - bottom].T)
    if height - top - bottom < LEAST_LEFT * height or width - left - right < LEAST_LEFT * width:
        return NO_MARGINS
    parts = (top / height, bottom / height, left / width, right / width)
    return tuple(part if part >= THIN else 0.0 for part in parts)


def _dark_ends(peak: np.ndarray) -> tuple[int, int]:
    """Return how many rows at the start and at the end of `peak` (rows, n) are black."""
    if peak.size == 0:
        return 0, 0
    lit = np.flatnonzero(np.percentile(peak, 99, axis=1) > BLACK)
    return (int(lit[0]), int(len(peak) - 1 - lit[-1])) if len(lit) else (len(peak), 0)


def _burnt_in(
    low: np.ndarray, median: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, tuple[Margins, ...]]:
    """Return a mask (h, w) of the marks and their surroundings, and their boxes."""
    height, width = median.shape
    mask = np.zeros((height, width), bool)
    lit = high > BLACK
    if not lit.any() or ((high - low)[lit] > MOVING).mean() < LEAST_MOVING:
        return mask, ()  # the scene itself stands still
    contrast = cv2.morphologyEx(median, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
    found = (median >= BRIGHT) & (high - low <= STILL) & (contrast >= SHARP) & ~_rim(lit)
    found = found.astype(np.uint8)
    reach = np.ones((2 * (height // 100) + 3, 2 * (width // 50) + 3), np.uint8)  # letters make a line
    joined = cv2.dilate(found, reach)
    count, labels = cv2.connectedComponents(joined)
    boxes = []
    for label in range(1, count):
        rows, columns = np.nonzero((labels == label) & (found > 0))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        if len(rows) >= FEWEST_PIXELS and bottom - top >= LOWEST and right - left >= LOWEST:
            boxes.append((top / height, bottom / height, left / width, right / width))
            mask |= labels == label
    return mask, tuple(tuple(float(edge) for edge in box) for box in boxes)


def _rim(lit: np.ndarray) -> np.ndarray:
    """Return what lies close to the edge of the lit field of view (h, w): it is sharp, and stands still.

    Darkness inside the field, such as a black box behind text or the outline of letters, is part of it.
    """
    side = min(lit.shape)
    thick = np.ones((max(3, round(THICK * side)),) * 2, np.uint8)
    field = cv2.morphologyEx(lit.astype(np.uint8), cv2.MORPH_OPEN, thick)
    _, regions = cv2.connectedComponents(1 - field)
    at_edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    field = (~np.isin(regions, at_edge[at_edge > 0])).astype(np.uint8)
    if field.min() == 1 or field.max() == 0:
        return np.zeros(lit.shape, bool)
    to_edge = (cv2.distanceTransform(part, cv2.DIST_L2, 3) for part in (field, 1 - field))
    return sum(to_edge) <= max(2.0, RIM * side)


def crop(image: np.ndarray, margins: Margins) -> np.ndarray:
    """Return `image` (h, w, ...) without its margins; at least one pixel is left."""
    height, width = image.shape[:2]
    top, bottom, left, right = (
        round(part * side) for part, side in zip(margins, (height, height, width, width), strict=True)
    )
    return image[top : max(height - bottom, top + 1), left : max(width - right, left + 1)]


def place(box: Margins) -> str:
    """Return where a box lies, in words: "at the top left"."""
    middle_row, middle_column = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
    row = "top" if middle_row < 1 / 3 else "bottom" if middle_row > 2 / 3 else "middle"
    column = "left" if middle_column < 1 / 3 else "right" if middle_column > 2 / 3 else ""
    return f"at the {row} {column}".rstrip() if (row, column) != ("middle", "") else "in the middle"
