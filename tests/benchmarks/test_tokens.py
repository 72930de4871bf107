"""The benchmark of EndoGen's cache times a clip with it and without."""

from __future__ import annotations

import sys

import pytest

from benchmarks import tokens
from benchmarks.tokens import measure
from medsora.errors import BadInput


def test_both_ways_are_timed_in_every_round() -> None:
    times = measure("tiny", 16, 2, positions=2)
    assert times.keys() == {"cached", "uncached"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--codes", "970"], "--codes is 970 but must be a square, such as 961 or 1024"),
        (["--codes", "0"], "--codes is 0"),
        (["--rounds", "0"], "--rounds is 0"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tokens", *words])
    with pytest.raises(BadInput, match=sentence):
        tokens.main()
