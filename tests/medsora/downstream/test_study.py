"""Runs of a study that are read again are those that were written, or refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from medsora.downstream.study import Study
from medsora.errors import BadInput


def study(folder: Path) -> Study:
    side = SimpleNamespace(digest=lambda: "0")
    fields = {"title": "t", "command": "c", "trivial": {}, "notes": (), "facts": {}, "scores": ("accuracy",)}
    scores = {"scores": {"accuracy": 0.75}, "replicates": {"accuracy": [0.5, 1.0]}}
    sides = {"labelled": side, "test": side, "unlabelled": {}}
    return Study(**fields, **sides, folder=folder, seeds=range(1), train=lambda variant, seed: scores)


def test_a_changed_score_is_refused_and_an_older_run_is_read(tmp_path: Path) -> None:
    study(tmp_path).run()
    again = study(tmp_path)
    again.find_finished()
    assert [run["scores"] for run in again.results.values()] == [{"accuracy": 0.75}]
    (path,) = (tmp_path / "runs").iterdir()
    whole = path.read_text()
    path.write_text(whole.replace("0.75", "0.95"))
    with pytest.raises(BadInput, match="does not match its checksum"):
        study(tmp_path).find_finished()
    path.write_text(whole.replace("0.75", "0.95").replace("crc32", "before"))
    study(tmp_path).find_finished()
