"""Windows of consecutive frames in a video; each gives one clip per epoch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from medsora.data.checking.scan import Scan
from medsora.data.checking.timing import SAME_RATE


class Window(NamedTuple):
    """A clip may start at any source frame from `start` to `latest`."""

    start: int
    latest: int


class NoClips(Exception):
    """A source gives no clip by `data.rate`; the message gives the reason."""


def clip_span(frames: int, interval: int) -> int:
    """Return how many source frames a clip of `frames` frames covers: 17 at interval 3 cover 49."""
    return (frames - 1) * interval + 1


def windows_of(scan: Scan, span: int, stride: int) -> list[Window]:
    """Return the windows of one video: one every `stride` source frames in which a whole span fits."""
    return [
        Window(start, min(start + stride - 1, stop - span))
        for run_start, stop in scan.runs()
        for start in range(run_start, stop - span + 1, stride)
    ]


@dataclass(frozen=True)
class TimedClips:
    """Clips of `frames` frames of a video, `rate` per second: at every instant the nearest source frame.

    `step` are source frames from one to the next, at least 1; where the source's are uneven `times_ms` are
    their times. `timed_clips` makes them.
    """

    frames: int
    rate: float
    step: float
    times_ms: tuple[int, ...] = ()

    def numbers(self, start: int, count: int | None = None) -> list[int]:
        """Return the source frames of the clip that starts at `start`, rising; `count` of them."""
        order = np.arange(self.frames if count is None else count)
        if not self.times_ms:
            return (start + np.floor(order * self.step + 0.5).astype(int)).tolist()
        times = self._times
        instants = times[start] + order * self._period_ms
        behind = np.searchsorted(times, instants).clip(1, len(times) - 1)
        nearest = behind - (instants - times[behind - 1] <= times[behind] - instants)
        nearest[0] = start
        return (np.maximum.accumulate(nearest - order) + order).tolist()

    @property
    def span(self) -> int:
        """Source frames that a clip covers, on average where they are uneven."""
        return clip_span(self.frames, 1) + round((self.frames - 1) * (self.step - 1))

    def windows(self, scan: Scan, stride: int | None) -> list[Window]:
        """Return the windows of `scan`, one every `stride` source frames, or every clip's span."""
        if not self.times_ms:
            return windows_of(scan, self.numbers(0)[-1] + 1, stride or self.numbers(0)[-1] + 1)
        return [window for part in self._fast_enough(scan) for window in self._windows_in(*part, stride)]

    def slow_frames(self, scan: Scan) -> int:
        """Return how many frames lie where the source is slower than the rate."""
        usable = sum(stop - start for start, stop in self._fast_enough(scan)) if self.times_ms else None
        return 0 if usable is None else sum(stop - start for start, stop in scan.runs()) - usable

    @cached_property
    def _times(self) -> np.ndarray:
        return np.asarray(self.times_ms, float)

    @property
    def _period_ms(self) -> float:
        return 1000 / self.rate

    def _fast_enough(self, scan: Scan) -> Iterator[tuple[int, int]]:
        """Return the parts (start, stop) of the shots in which no frame is missing at the rate."""
        slow = np.flatnonzero(np.diff(self._times) > self._period_ms * (1 + SAME_RATE) + 1) + 1  # 1: rounding
        for start, stop in scan.runs():
            edges = [start, *slow[(slow > start) & (slow < stop)].tolist(), stop]
            yield from ((low, high) for low, high in pairwise(edges) if high - low > 1)

    def _windows_in(self, begin: int, stop: int, stride: int | None) -> Iterator[Window]:
        end = self._times[stop - 1] + self._period_ms / 2

        def too_late(start: int) -> bool:
            last = self._times[start] + (self.frames - 1) * self._period_ms
            return last > end or self.numbers(start)[-1] >= stop

        latest = bisect_left(range(begin, stop), True, key=too_late) + begin - 1
        start = begin
        while start <= latest:
            following = start + stride if stride else self.numbers(start)[-1] + 1
            yield Window(start, min(following - 1, latest))
            start = following


def timed_clips(scan: Scan, frames: int, rate: float) -> TimedClips:
    """Return the clips of a source by time. Raises `NoClips` if its rate is unknown or too low."""
    if scan.fps is None:
        raise NoClips("its frame rate is not known, which data.rate needs; set data.interval instead")
    if not scan.times_ms and scan.fps < rate * (1 - SAME_RATE):
        raise NoClips(f"slower than data.rate: it has {scan.fps:.4g} frames per second, not {rate:g}")
    return TimedClips(frames, rate, max(1.0, scan.fps / rate), scan.times_ms)
