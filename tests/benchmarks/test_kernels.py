"""The bench prints one line per usable backend, and says what is missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import kernels as bench
from medsora.kernels import backends


def test_prints_every_usable_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--device", "cpu", "--dtype", "float32", "--lengths", "8", "--batches", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--seconds", "0.01"])
    monkeypatch.setattr(
        bench, "backends", lambda: backends() | {"triton": "left out", "mamba_ssm": "left out"}
    )
    rows = list(bench.rows())
    printed = capsys.readouterr().out
    assert "triton: not here, left out" in printed
    assert {row["backend"] for row in rows} == {"reference", "torch"}
    assert all(row["bytes"] > 0 for row in rows)
    (row,) = [line.split() for line in printed.splitlines() if line.split()[:3] == ["8", "1", "torch"]]
    milliseconds, with_backward = float(row[3]), float(row[5])
    assert milliseconds > 0
    assert with_backward > 0
    assert float(row[-2]) == pytest.approx(12 * milliseconds, rel=1e-2)


def test_sizes_that_take_minutes_are_left_out_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--device", "cpu", "--dtype", "float32", "--lengths", "8", "16", "--batches", "1", "2"]
    monkeypatch.setattr("sys.argv", [*argv, "--seconds", "0.01", "--most-tokens", "128"])
    monkeypatch.setattr(bench, "REFERENCE_STEPS", 8)
    rows = list(bench.rows())
    sizes = [(row["length"], row["batch"]) for row in rows if row["backend"] == "torch"]
    assert sizes == [(8, 1), (8, 2), (16, 1)]
    assert [row["length"] * row["batch"] for row in rows if row["backend"] == "reference"] == [8]
    assert "256 tokens are more than --most-tokens 128" in capsys.readouterr().out


def test_a_backend_that_fails_costs_no_other_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(scans: object, backend: str, *, backward: bool) -> None:
        if backend == "broken":
            raise ValueError("out of something\nmore")

    monkeypatch.setattr(bench, "run", run)
    speed = bench.Speed(1e9, 1e9)
    *rows, failed = bench.report(
        8, 1, ["broken", "torch"], torch.device("cpu"), torch.float32, speed, seconds=0.001
    )
    assert [row["backend"] for row in rows] == ["torch"]
    assert failed == {"length": 8, "batch": 1, "backend": "broken", "failed": "out of something"}
    assert "broken failed: out of something" in capsys.readouterr().out


def test_lengths_are_lines_of_whole_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--lengths", "47"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2


def test_kept_bytes_counts_storages_once_and_no_parameters() -> None:
    layer = nn.Linear(4, 8, bias=False)
    x = torch.randn(16, 4)
    assert bench.kept_bytes(layer.parameters(), lambda: (layer(x) + layer(x)).sum()) == x.nbytes
    assert bench.kept_bytes(layer.parameters(), lambda: layer(x).exp().sum()) == pytest.approx(
        x.nbytes + 16 * 8 * 4
    )
