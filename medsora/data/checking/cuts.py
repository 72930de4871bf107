"""Hard cuts inside a recording: frames from which on another scene is shown.

A cut is one large change between frames that hardly change on either side. The change of the picture and that
of its colours are both measured against those beside it, so fast motion, which continues, does not count.
Neither does a change that is undone within a few frames (a flash, a drop-out), nor one of the light alone.
`python -m tools.cut_detection` counts what is found and what is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIDE_PX = 16  # side of a thumbnail
SAMPLED_PX = 2 * SIDE_PX  # pixels sampled along a frame's side; each pixel of the thumbnail is the mean of 4
NEAR = 2  # frames on each side with whose changes a change is compared
MAX_FLASH_FRAMES = 3  # a change that is undone within this many frames is no cut
LAGS = NEAR + MAX_FLASH_FRAMES  # maximum distance of compared frames
BINS = 8  # per colour channel in a histogram
STILL, STILL_COLOURS = 2.0, 0.1  # added to changes beside a cut: grey levels, part of the pixels
# Change over the change beside it, of the picture times of the colours. 388 phantom clips and four real ones
# reach 0.94; 1.3 % of joins of two phantom clips stay below 1.1.
MIN_RATIO, MIN_RATIO_AT_ENDS = 1.1, 1.6
MAX_ALIKE = 0.9  # correlation of the grey pictures; 0.1 % of joins of two phantom clips exceed it
MIN_CHANGE = 10.0  # grey levels; smaller changes are no cut at any ratio
MAX_REPEATED = 3  # repeats of a frame that are skipped, for recordings at up to 4 times the camera's rate
MAX_REPEAT_CHANGE = 1.0  # grey levels by which compression changes a repeated frame
BLOCK = 256  # frames whose thumbnails are held


class CutFinder:
    """Takes the frames of one video one by one, and finds the cuts between them."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._samples: list[np.ndarray] = []
        self._last: np.ndarray | None = None
        self._repeated = 0
        self._thumbnails = np.empty((0, SIDE_PX, SIDE_PX, 3), np.int16)  # the last LAGS ones compared
        self._changes: list[np.ndarray] = []
        self._alike: list[np.ndarray] = []

    def add(self, number: int, frame: np.ndarray) -> None:
        """Take the frame `number`, uint8 (h, w, 3); numbers rise, but may leave frames out."""
        if frame.shape[:2] != (SAMPLED_PX, SAMPLED_PX):
            rows, columns = (
                ((np.arange(SAMPLED_PX) + 0.5) * n / SAMPLED_PX).astype(int) for n in frame.shape[:2]
            )
            frame = frame[rows[:, None], columns]
        if self._repeats(frame):
            return  # or every other frame of moving pictures would be a large change between still ones
        self._numbers.append(number)
        self._samples.append(frame)
        if len(self._samples) >= BLOCK:
            self._compare()

    def _repeats(self, frame: np.ndarray) -> bool:
        """Return whether `frame` repeats the one before, and no more than MAX_REPEATED have done so."""
        last, self._last = self._last, frame.astype(np.int16)
        alike = last is not None and np.abs(self._last - last).mean() < MAX_REPEAT_CHANGE
        self._repeated = self._repeated + 1 if alike else 0
        return 0 < self._repeated <= MAX_REPEATED

    def cuts(self) -> tuple[int, ...]:
        """Return the numbers of the frames that begin another scene."""
        self._compare()
        if len(self._numbers) <= NEAR:
            return ()
        picture, colours = np.concatenate(self._changes, axis=-1)
        change, ratio = _against_beside(picture, STILL)
        ratio *= _against_beside(colours, STILL_COLOURS)[1]
        needed = np.full(len(ratio), MIN_RATIO)
        needed[[1, -1]] = MIN_RATIO_AT_ENDS  # there is only one side to measure by
        candidates = np.flatnonzero((ratio >= needed) & (change >= MIN_CHANGE)).tolist()
        no_cuts = set(np.flatnonzero(np.concatenate(self._alike) >= MAX_ALIKE).tolist())
        for one, two, three in zip(candidates, candidates[1:], candidates[2:], strict=False):
            if two - one == three - two == 2:
                no_cuts |= {one, two, three}  # a fine texture that moves by half the sampling distance
        for first, second in _pairs(candidates):
            if picture[second - first + 1, second] < change[first] / 2:
                no_cuts |= {first, second}
        return tuple(self._numbers[index] for index in candidates if index not in no_cuts)

    def _compare(self) -> None:
        """Compare the frames held with those before them; keep how much they differ, and the last ones."""
        if not self._samples:
            return
        new = np.stack(self._samples).astype(np.int16)
        new = new[:, ::2] + new[:, 1::2]
        new = (new[:, :, ::2] + new[:, :, 1::2]) // 4
        frames = np.concatenate([self._thumbnails, new])
        differences = [_differences(frames, len(new)), _differences(_histograms(frames), len(new))]
        differences[0] /= frames[0].size
        differences[1] /= 2 * SIDE_PX**2
        self._changes.append(np.stack(differences))
        self._alike.append(_correlations(frames)[-len(new) :])
        self._samples, self._thumbnails = [], frames[-LAGS:]


def _differences(values: np.ndarray, count: int) -> np.ndarray:
    """Return how much each of the last `count` of `values` (n, ...) differs from those before it.

    The result (LAGS + 1, count) holds sums of absolute differences by lag, infinity where there is no frame.
    """
    total = len(values)
    sums = np.full((LAGS + 1, count), np.inf)
    for lag in range(1, min(LAGS, total - 1) + 1):
        first = max(lag, total - count)
        apart = np.abs(values[first:] - values[first - lag : total - lag])
        sums[lag, first - total :] = apart.reshape(total - first, -1).sum(axis=1)
    return sums


def _histograms(thumbnails: np.ndarray) -> np.ndarray:
    """Return the colour histogram of each thumbnail, spread over neighbouring bins: (n, BINS³)."""
    bins = thumbnails.reshape(len(thumbnails), -1, 3).astype(np.int64) * BINS // 256
    index = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    index += np.arange(len(thumbnails))[:, None] * BINS**3
    counts = np.bincount(index.ravel(), minlength=len(thumbnails) * BINS**3).astype(np.float32)
    counts = counts.reshape(len(thumbnails), BINS, BINS, BINS)
    for axis in (1, 2, 3):
        counts = np.moveaxis(counts, axis, 1)
        spread = counts / 2
        spread[:, 1:] += counts[:, :-1] / 4
        spread[:, :-1] += counts[:, 1:] / 4
        counts = np.moveaxis(spread, 1, axis)
    return counts.reshape(len(thumbnails), -1)


def _correlations(thumbnails: np.ndarray) -> np.ndarray:
    """Return the correlation (n,) of each thumbnail's brightness with the one before, 0 for the first."""
    grey = thumbnails.sum(axis=-1, dtype=np.float32).reshape(len(thumbnails), -1)
    grey -= grey.mean(axis=1, keepdims=True)
    grey /= np.sqrt(np.square(grey).sum(axis=1, keepdims=True)) + 1e-6
    return np.concatenate([[0.0], (grey[1:] * grey[:-1]).sum(axis=1)])


def _against_beside(differences: np.ndarray, still: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the change at every frame, and its ratio to the changes beside it.

    `differences[lag, t]` is that of the frames t - lag and t. The change at t is the least difference of one
    of the NEAR frames before t from one of the NEAR frames from t on, so one odd frame makes none.
    """
    frames = differences.shape[1]
    change = np.full(frames, np.inf)
    beside = np.zeros(frames)
    for ahead in range(NEAR):
        for lag in range(ahead + 1, ahead + NEAR + 1):
            change[: frames - ahead] = np.minimum(change[: frames - ahead], differences[lag, ahead:])
    step = np.where(np.isfinite(differences[1]), differences[1], 0)
    for away in range(1, NEAR):
        beside[away:] = np.maximum(beside[away:], step[:-away])
        beside[:-away] = np.maximum(beside[:-away], step[away:])
    change[0] = 0
    return change, change / (beside + still)


def _pairs(changes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of changes so close that the second may undo the first."""
    return [
        (first, second)
        for place, first in enumerate(changes)
        for second in changes[place + 1 : place + 1 + MAX_FLASH_FRAMES]
        if second - first <= MAX_FLASH_FRAMES
    ]
