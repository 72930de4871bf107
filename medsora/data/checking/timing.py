"""Findings from the time stamps of a video: its frame rate, where it was joined or paused, uneven steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAUSE_STEPS = 5.0  # a step this many times as long as its neighbours is a pause
STEPS_BESIDE = 5  # steps on either side; a step is compared with their median
JUMP_BACK_STEPS = 4.0  # a larger fall of time stamps is a restart; decoders may reorder a few frames
UNEVEN, MAX_UNEVEN_PART = 0.25, 0.01  # a step's distance from the median, and the part of steps beyond it
SAME_RATE = 0.01  # relative error of a header's frame rate from which the time stamps' rate is used


@dataclass(frozen=True)
class Timing:
    """The timing of a video."""

    fps: float | None  # frames per second, pauses left out; None if it cannot be known
    jumps: tuple[int, ...] = ()  # frames at which time stamps restart, as in joined recordings
    pauses: tuple[int, ...] = ()  # frames that follow much later than the one before
    times_ms: tuple[int, ...] = ()  # each frame's time, never falling, where steps are uneven; else empty


def read_timing(seconds: Sequence[float | None], header_fps: float | None) -> Timing:
    """Return the timing of frames by their time stamps; without these, the header's frame rate counts."""
    if len(seconds) < 2 or None in seconds:
        return Timing(header_fps)
    steps = np.diff(np.asarray(seconds, float))
    if 0 < steps.max() <= (1 + UNEVEN) * steps.min():
        return Timing(_fps(len(steps) / steps.sum(), header_fps))
    if not (steps > 0).any():
        return Timing(header_fps)
    typical = float(np.median(steps[steps > 0]))
    jumps = steps < -JUMP_BACK_STEPS * typical
    pauses = _pauses(steps)
    inside = ~jumps & ~pauses
    fps = _fps(inside.sum() / steps[inside].sum(), header_fps) if steps[inside].sum() > 0 else header_fps
    frames = tuple(tuple((np.flatnonzero(irregular) + 1).tolist()) for irregular in (jumps, pauses))
    if (np.abs(steps[inside] - typical) > UNEVEN * typical).mean() <= MAX_UNEVEN_PART:
        return Timing(fps, *frames)
    even = np.where(inside, np.maximum(steps, 0), typical)  # jumps and pauses are broken at anyway
    times = np.concatenate([[0], np.cumsum(even)]) * 1000
    return Timing(fps, *frames, tuple(times.round().astype(int).tolist()))


def uneven_words(times_ms: Sequence[int]) -> str | None:
    """Return how far apart frames are, in words; None where the steps are even."""
    if not times_ms:
        return None
    low, high = np.quantile(np.diff(times_ms), (0.01, 0.99)) / 1000
    return f"variable frame rate: frames are {low:.2g} to {high:.2g} s apart"


def _fps(rate: float, header_fps: float | None) -> float:
    """Return the header's frame rate where that of the time stamps is all but the same."""
    return header_fps if header_fps and abs(rate / header_fps - 1) <= SAME_RATE else float(rate)


def _pauses(steps: np.ndarray) -> np.ndarray:
    """Return which steps are much longer than those on both sides."""
    if steps.max() <= PAUSE_STEPS * steps.min():
        return np.zeros(len(steps), bool)
    missing = np.full(STEPS_BESIDE, np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(np.r_[missing, steps, missing], STEPS_BESIDE)
    whole = ~np.isnan(windows).all(axis=1)
    medians = np.zeros(len(windows))
    medians[whole] = np.nanmedian(windows[whole], axis=1)
    before, behind = medians[: len(steps)], medians[STEPS_BESIDE + 1 : STEPS_BESIDE + 1 + len(steps)]
    return (steps > PAUSE_STEPS * np.maximum(before, behind)) & (np.maximum(before, behind) > 0)
