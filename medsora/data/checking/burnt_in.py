"""Static content of a video whose scene moves: black borders, and text or logos burnt into the frames.

Names, dates and hospital logos are the same sharp pixels in frame after frame: bright ones, or strokes of
one colour behind which the scene moves. A model would learn them, and names are private: the check
warns of them. Black borders carry nothing and are cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from medsora.data.reading.margins import NO_MARGINS, Margins

SAMPLES = 24  # frames, evenly spaced over a video
MAX_SIDE_PX = 1024  # larger frames are scaled down to this side
MIN_SAMPLES = 8  # fewer frames cannot show that something stands still

BLACK = 24  # maximum pixel value (0-255) of a border, compression's noise included
THIN = 0.005  # share of a side; narrower borders are not cropped
MIN_LEFT = 0.25  # share of a side that must remain; otherwise the video is dark rather than bordered

BRIGHT, STILL, SHARP = 150, 24, 80  # a mark's grey level, maximum change over time, minimum contrast
MOVING, MIN_MOVING = 12, 0.3  # change in grey levels, and the share of the picture that must change so much
MIN_PIXELS, MIN_HEIGHT_PX = 20, 5  # minimum area and height of a mark, after scaling down

# Letters of any colour are distinguished from the scene by what moves around them, and by being many strokes,
# close together, of one colour; an instrument that rests is none of these.
STROKE, NEAR = 0.03, 0.03  # thickness of a stroke, radius of a neighbourhood; shares of the shorter side
STILLER, MIN_AROUND = 0.3, 30  # maximum change of a letter over its surroundings', minimum of theirs
CLEAR = 60  # minimum contrast to the surroundings, in grey levels of any colour channel
ONE_COLOUR, MIN_ALIKE = 40, 0.7  # distance from the letters' median colour in levels, minimum share within it
MIN_FILLED = 0.06  # minimum share of its box that a line of letters covers
LEGIBLE = 96  # pixels of the shorter side: on smaller pictures no coloured letter can be read
DARK_AROUND = 0.4  # minimum share of black in a coloured letter's surroundings where these do not move
THICK, RIM = 0.04, 0.03  # maximum width of a stroke, width of the view's rim; shares of the shorter side
MIN_RIM_PX = 3.0  # a contrast over 5x5 pixels reaches 2.83 beyond a diagonal edge


@dataclass(frozen=True)
class StillMarks:
    """Result of `find_still_marks`: black borders, and the boxes of burnt-in marks.

    `marks` are boxes (top, bottom, left, right), parts of height and width counted from the top left.
    """

    margins: Margins = NO_MARGINS
    marks: tuple[Margins, ...] = ()


class EvenSamples:
    """Keeps some SAMPLES frames, evenly spaced, of a stream of unknown length."""

    def __init__(self) -> None:
        self._spacing = 1
        self.kept: list[np.ndarray] = []

    def wants(self, number: int) -> bool:
        """Return whether frame `number`, counted from 0 without gaps, is to be given to `add`."""
        return number % self._spacing == 0

    def add(self, frame: np.ndarray) -> None:
        """Keep a frame, uint8 (h, w, 3), reduced to MAX_SIDE_PX; another size discards the earlier ones."""
        scale = MAX_SIDE_PX / max(frame.shape)
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        if self.kept and self.kept[0].shape != frame.shape:
            self.kept.clear()
        self.kept.append(frame)
        if len(self.kept) >= 2 * SAMPLES:
            self.kept, self._spacing = self.kept[::2], 2 * self._spacing

    def still_marks(self) -> StillMarks:
        """Return the static content of the frames kept."""
        return find_still_marks(np.stack(self.kept)) if self.kept else StillMarks()


def find_still_marks(frames: np.ndarray) -> StillMarks:
    """Return borders and marks of `frames`, uint8 (T, h, w, 3), spread over one video.

    Marks on a black border do not keep it from being one: it is cropped with them. One that reaches from
    there into the picture by less than half moves the border's edge.
    """
    grey = _levels(np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]))
    mask, marks = False, ()
    if len(frames) >= MIN_SAMPLES and _scene_moves(*grey):
        pixels = _bright_marks(*grey)
        if min(pixels.shape) >= LEGIBLE:
            channels = [_levels(frames[..., channel]) for channel in range(3)]
            colour = (np.stack(level, axis=-1) for level in zip(*channels, strict=True))
            pixels |= _coloured_marks(grey[2], *colour)
        mask, marks = _burnt_in(pixels)
    return StillMarks(_with_marks(_margins(np.where(mask, 0, grey[2])), marks), marks)


def _levels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return low, median and high (h, w) of `values` (T, h, w) over time, flashes left out."""
    ordered = np.sort(np.moveaxis(values, 0, -1))
    low, median, high = (ordered[..., round(part * (len(values) - 1))] for part in (0.05, 0.5, 0.95))
    return low.copy(), median.copy(), high.copy()


def _scene_moves(low: np.ndarray, median: np.ndarray, high: np.ndarray) -> bool:
    lit = high > BLACK
    return bool(lit.any()) and ((high - low)[lit] > MOVING).mean() >= MIN_MOVING


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
    if height - top - bottom < MIN_LEFT * height or width - left - right < MIN_LEFT * width:
        return NO_MARGINS
    parts = (top / height, bottom / height, left / width, right / width)
    return tuple(part if part >= THIN else 0.0 for part in parts)


def _dark_ends(peak: np.ndarray) -> tuple[int, int]:
    """Return how many rows at the start and at the end of `peak` (rows, n) are black."""
    if peak.size == 0:
        return 0, 0
    lit = np.flatnonzero(np.percentile(peak, 99, axis=1) > BLACK)
    return (int(lit[0]), int(len(peak) - 1 - lit[-1])) if len(lit) else (len(peak), 0)


def _bright_marks(low: np.ndarray, median: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return where (h, w) grey levels are bright, still and sharp: white marks, boxed or not."""
    contrast = cv2.morphologyEx(median, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
    return (median >= BRIGHT) & (high - low <= STILL) & (contrast >= SHARP) & ~_rim(high > BLACK)


def _coloured_marks(
    grey_high: np.ndarray, low: np.ndarray, median: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return where (h, w) there are letters of any colour, dark ones too, by levels (h, w, 3) over time."""
    side = min(grey_high.shape)
    change = (high - low).max(axis=-1).astype(np.float32)
    near = (max(5, 2 * round(NEAR * side) + 1),) * 2
    around = cv2.blur(change, near)
    still = (change <= np.clip(STILLER * around, STILL, 2 * STILL)).astype(np.uint8)
    stroke = np.ones((max(3, round(STROKE * side)),) * 2, np.uint8)
    thin = (still & ~cv2.morphologyEx(still, cv2.MORPH_OPEN, stroke)) > 0
    square = np.ones((5, 5), np.uint8)
    contrast = cv2.morphologyEx(median, cv2.MORPH_GRADIENT, square).max(axis=-1)
    rim = _rim(grey_high > BLACK)
    candidates = thin & (contrast >= CLEAR) & (around >= MIN_AROUND) & ~rim
    letters = np.zeros_like(candidates)
    for line in _lines(candidates):
        rows, columns = np.nonzero(line)
        colours = median[line].astype(float)
        alike = np.abs(colours - np.median(colours, axis=0)).max(axis=-1) <= ONE_COLOUR
        filled = len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
        if alike.mean() >= MIN_ALIKE and filled >= MIN_FILLED:
            letters |= line
    black = cv2.blur((high.max(axis=-1) <= 2 * BLACK).astype(np.float32), near) >= DARK_AROUND
    on_black = (median.max(axis=-1) >= BRIGHT) & (change <= STILL) & (contrast >= SHARP) & black & ~rim
    return letters | on_black


def _lines(candidates: np.ndarray) -> list[np.ndarray]:
    """Return the pixels `candidates` (h, w) parted into lines of letters, specks left out: masks (h, w)."""
    _, labels = cv2.connectedComponents(_widened(candidates.astype(np.uint8)))
    pixels = np.bincount(labels[candidates], minlength=1)
    lines = []
    for label in np.flatnonzero(pixels >= MIN_PIXELS):
        line = (labels == label) & candidates
        rows, columns = np.nonzero(line)
        if min(np.ptp(rows), np.ptp(columns)) + 1 >= MIN_HEIGHT_PX:
            lines.append(line)
    return lines


def _widened(mask: np.ndarray) -> np.ndarray:
    """Return `mask`, uint8 (h, w), widened until the letters of a line touch each other."""
    height, width = mask.shape
    return cv2.dilate(mask, np.ones((2 * (height // 100) + 3, 2 * (width // 50) + 3), np.uint8))


def _burnt_in(candidates: np.ndarray) -> tuple[np.ndarray, tuple[Margins, ...]]:
    """Return a mask (h, w) of the marks found and their surroundings, and their boxes."""
    height, width = candidates.shape
    mask = np.zeros((height, width), np.uint8)
    boxes = []
    for line in _lines(candidates):
        rows, columns = np.nonzero(line)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        boxes.append((top / height, bottom / height, left / width, right / width))
        mask |= line
    return _widened(mask) > 0, tuple(tuple(float(edge) for edge in box) for box in boxes)


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
    return sum(to_edge) <= max(MIN_RIM_PX, RIM * side)


def marks_inside(marks: Sequence[Margins], margins: Margins) -> tuple[Margins, ...]:
    """Return the boxes of marks that are left when `margins` are cropped."""
    top, bottom, left, right = margins
    return tuple(
        box for box in marks if box[1] > top and box[0] < 1 - bottom and box[3] > left and box[2] < 1 - right
    )


def position_words(box: Margins) -> str:
    """Return where a box lies, in words: "at the top left"."""
    middle_row, middle_column = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
    row = "top" if middle_row < 1 / 3 else "bottom" if middle_row > 2 / 3 else "middle"
    column = "left" if middle_column < 1 / 3 else "right" if middle_column > 2 / 3 else ""
    return f"at the {row} {column}".rstrip() if (row, column) != ("middle", "") else "in the middle"
