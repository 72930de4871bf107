"""The benchmark of the phantom renders what it is asked for and prints the rate."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import phantom


def test_the_rate_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clips", "2", "--frames", "2", "--size", "16", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["phantom", *options])
    phantom.main()
    line = capsys.readouterr().out.strip()
    form = r"2 clips of 2 frames of 16x16 pixels by 1 processes: (\d+\.\d) s, (\d+) a minute"
    assert int(re.fullmatch(form, line)[2]) > 0
