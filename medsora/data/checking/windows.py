"""Where clips lie in a video: windows of consecutive frames, each the home of one clip per epoch."""

from __future__ import annotations

from typing import NamedTuple

from medsora.data.checking.scan import Scan


class Window(NamedTuple):
    """A clip may start at any source frame from `start` to `latest`."""

    start: int
    latest: int


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
