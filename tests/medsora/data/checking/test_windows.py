"""Windows: each holds a whole clip, none begins before the one before it has ended its starts."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from medsora.data.checking.windows import Window, clip_span, windows_of


def scan(*runs: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(runs=lambda: runs)


@pytest.mark.parametrize(("frames", "interval", "span"), [(1, 5, 1), (17, 1, 17), (17, 3, 49)])
def test_a_clip_spans_its_frames_and_what_lies_between(frames: int, interval: int, span: int) -> None:
    assert (
        clip_span(frames, interval)
        == span
        == len(range(frames * interval)[::interval]) * interval - (interval - 1)
    )


def test_windows_by_hand() -> None:
    assert windows_of(scan((0, 20)), 8, 8) == [Window(0, 7), Window(8, 12)]
    assert windows_of(scan((0, 8)), 8, 8) == [Window(0, 0)]
    assert windows_of(scan((0, 7)), 8, 8) == []
    assert windows_of(scan((3, 12), (15, 25)), 8, 8) == [Window(3, 4), Window(15, 17)]


@pytest.mark.parametrize("stride", [1, 3, 8, 30])
@pytest.mark.parametrize("length", [7, 8, 9, 50, 63])
def test_every_start_lies_in_one_window_at_most_and_fits(length: int, stride: int) -> None:
    windows = windows_of(scan((10, 10 + length)), 8, stride)
    for window in windows:
        assert 10 <= window.start <= window.latest <= 10 + length - 8
        assert window.latest - window.start < stride
    assert all(before.latest < after.start for before, after in pairwise(windows))
    starts = [start for window in windows for start in range(window.start, window.latest + 1)]
    assert starts == list(range(10, 10 + length - 8 + 1))
