"""The benchmark of lengths times every length and waits for the work to be done."""

from __future__ import annotations

from benchmarks.length import step_seconds


def test_every_length_is_timed() -> None:
    seconds = step_seconds("tiny", [8, 16], 32, 1)
    assert seconds.keys() == {8, 16}
    assert all(value > 0 for value in seconds.values())
