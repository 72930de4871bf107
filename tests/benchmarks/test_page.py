"""The page of measured speed: the newest line counts, what was not measured is said not to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import page
from medsora.errors import BadInput
from medsora.runtime.files import END_MARK


def entry(median: float, *, commit: str, batch: int = 1, machine: str = "a CPU") -> dict:
    ratio = {"median": median, "low": median - 0.1, "high": median + 0.1}
    values = {"preset": "B", "compiled": False, "batch": batch, "step, same latents": ratio}
    return {"benchmark": "sample", "device": "cpu", "machine": machine, "commit": commit, "figures": values}


def test_the_newest_line_of_a_size_is_what_the_table_shows() -> None:
    entries = [entry(1.5, commit="old"), entry(1.8, commit="new"), entry(9.0, commit="two", batch=2)]
    head, _, first, second, *others, end = page.results_tables(entries)
    assert head.endswith(" | a CPU |")
    assert first.endswith(" | 1.80x (1.70–1.90) |")
    assert "9.00x" in second
    assert end == ""
    assert all("not yet" in row for row in others if row.startswith("| "))
    assert "GPU: not measured yet." in others


def test_every_machine_keeps_its_own_newest_line() -> None:
    entries = [
        entry(1.5, commit="old"),
        entry(1.2, commit="other", machine="another CPU"),
        entry(1.8, commit="new"),
        entry(9.0, commit="two", batch=2, machine="another CPU"),
    ]
    head, _, first, second, *_ = page.results_tables(entries)
    assert head.endswith(" | a CPU | another CPU |")
    assert first.endswith(" | 1.80x (1.70–1.90) | 1.20x (1.10–1.30) |")
    assert second.endswith(" | not yet | 9.00x (8.90–9.10) |")


def test_shares_are_made_of_both_sides() -> None:
    values = {"kept for the backward, MiB": {"reference": 8.0, "ours": 2.0}}
    assert page.value_of(values, "share kept") == 0.25
    assert page.value_of({}, "share of peak") is None


def test_only_what_lies_between_the_marks_is_written(tmp_path: Path, monkeypatch) -> None:
    written, results = tmp_path / "performance.md", tmp_path / "results.jsonl"
    results.write_text(json.dumps(entry(2.0, commit="abc")) + "\n")
    written.write_text(f"before\n{page.BEGIN}\nstale\n{END_MARK}\nafter\n")
    monkeypatch.setattr(page, "PAGE", written)
    monkeypatch.setattr(page, "PICTURE", tmp_path / "performance.svg")
    monkeypatch.setattr(page, "RESULTS", results)
    page.main()
    text = written.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert "2.00x" in text
    assert (tmp_path / "performance.svg").read_text().count("<svg") == 1
    written.write_text("no marks")
    with pytest.raises(BadInput, match="marks"):
        page.main()
