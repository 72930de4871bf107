"""The benchmark of growth counts linear cost of longer clips, and times it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import growth


def test_the_cost_of_a_step_is_linear_in_the_frames() -> None:
    assert 1 <= growth.counted("tiny") < 1.5  # 16 if it were quadratic


def test_figures_are_printed_and_kept_unless_dry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(growth, "LONG", 2 * growth.SHORT)
    results = tmp_path / "results.jsonl"
    command = ["growth", "--preset", "tiny", "--device", "cpu", "--results", str(results)]
    for dry in (["--dry"], []):
        monkeypatch.setattr(sys, "argv", command + dry)
        growth.main()
        assert "'FLOPs, times linear': " in capsys.readouterr().out
        assert results.exists() == (not dry)
    kept = json.loads(results.read_text())
    assert kept["benchmark"] == "growth"
    assert kept["figures"]["FLOPs, times linear"] == pytest.approx(1, abs=0.5)


def test_a_steps_time_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "LONG", 2 * growth.SHORT)
    monkeypatch.setattr(growth, "take_turns", lambda works, rounds, device: {n: [int(n)] for n in works})
    assert growth.timed("tiny", torch.device("cpu")) == 1
