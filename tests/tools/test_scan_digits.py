"""The check of the scan's digits passes where they are kept, and fails where more are asked for."""

from __future__ import annotations

import pytest

from tools.scan_digits import main


def test_digits_are_counted_against_float64(capsys: pytest.CaptureFixture[str]) -> None:
    point = ["--backends", "torch", "--lengths", "48", "--steps", "100"]
    assert main(point) == 0
    assert capsys.readouterr().out.startswith("torch, length 48, steps 100: ")
    assert main([*point, "--tolerance", "1e-12"]) == 1
