"""The benchmark of lengths times every length and waits for the work to be done."""

from __future__ import annotations

import sys

import pytest

from benchmarks import length
from benchmarks.length import step_seconds
from medsora.errors import BadInput


def test_every_length_is_timed() -> None:
    seconds = step_seconds("tiny", [8, 16], 32, 1)
    assert seconds.keys() == {8, 16}
    assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize(
    ("words", "sentence"), [(["--rounds", "0"], "--rounds is 0"), (["--frames", "12"], "12")]
)
def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str) -> None:
    monkeypatch.setattr(sys, "argv", ["length", *words])
    with pytest.raises(BadInput, match=sentence):
        length.main()
