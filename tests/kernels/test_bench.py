"""The bench prints one line per usable backend, and says what is missing."""

from __future__ import annotations

import pytest

from kernels import backends, bench


def test_prints_every_usable_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--device", "cpu", "--dtype", "float32", "--lengths", "8", "--batches", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--seconds", "0.01"])
    monkeypatch.setattr(
        bench, "backends", lambda: backends() | {"triton": "left out", "mamba_ssm": "left out"}
    )
    bench.main()
    printed = capsys.readouterr().out
    assert "triton: not here, left out" in printed
    (row,) = [line.split() for line in printed.splitlines() if line.split()[:3] == ["8", "1", "torch"]]
    milliseconds, with_backward = float(row[3]), float(row[5])
    assert milliseconds > 0
    assert with_backward > 0
    assert float(row[-2]) == pytest.approx(12 * milliseconds, rel=1e-2)


def test_lengths_are_lines_of_whole_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--lengths", "47"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
