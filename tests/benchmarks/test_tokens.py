"""The benchmark of EndoGen's cache times a clip with it and without."""

from __future__ import annotations

from benchmarks.tokens import measure


def test_both_ways_are_timed_in_every_round() -> None:
    times = measure("tiny", 16, 2, positions=2)
    assert times.keys() == {"cached", "uncached"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
