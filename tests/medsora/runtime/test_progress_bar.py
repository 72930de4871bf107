"""The progress bar moves on a terminal and leaves few whole lines in a log; nobody has a bar of his own."""

from __future__ import annotations

import ast
import io
import sys

import pytest

from medsora.runtime.progress_bar import progress_bar
from tests.support.paths import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with progress_bar("rendering", total=10_000, unit="video") as bar:
        for _ in range(10_000):
            bar.update()
    assert list(progress_bar("reading", range(5), unit="clip")) == list(range(5))
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    first, last = ([line for line in lines if line.startswith(title)] for title in ("rendering", "reading"))
    assert first + last == lines
    assert first[0].startswith("rendering:   0%")
    assert "10000/10000" in first[-1]
    assert "5/5" in last[-1]
    assert len(first) < 100  # not one per video


def test_a_terminal_gets_one_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress_bar("reading", range(5), unit="clip")) == list(range(5))
    assert terminal.getvalue().count("\n") == 1
    assert "\r" in terminal.getvalue()


def test_a_hidden_one_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    assert list(progress_bar("reading", range(5), unit="clip", show=False)) == list(range(5))
    assert log.getvalue() == ""


def test_nobody_makes_a_bar_of_his_own() -> None:
    makers = set()
    for package in ("medsora", "vae", "flow_prior", "kernels", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                    makers.add(str(path.relative_to(ROOT)))
    assert makers == {"medsora/runtime/progress_bar.py"}
