"""How values are taken and kept."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.support import measure
from benchmarks.support.wirings import wiring_parser

CPU = torch.device("cpu")


def test_works_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    times = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert "".join(calls) == "ab" * 4
    assert [len(times[name]) for name in "ab"] == [3, 3]


def test_a_gpu_is_warmed_up_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds", lambda work, device: work())
    for device, count in ((CPU, 1), (torch.device("cuda"), 2)):
        calls: list[int] = []
        measure.take_turns({"a": partial(calls.append, 1)}, 3, device)
        assert len(calls) - 3 == measure.warm_ups(device) == count


def test_a_ratio_is_of_rounds_not_of_medians() -> None:
    found = measure.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    assert str(found) == "3.00x (2.00-4.00)"


def test_a_result_names_machine_versions_and_commit(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for number in range(2):
        measure.keep("test", CPU, {"ratio": measure.ratio([2.0], [1.0]), "number": number}, path)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["figures"] == {"ratio": {"median": 2.0, "low": 2.0, "high": 2.0}, "number": 0}
    assert second["figures"]["number"] == 1
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"machine", "commit", "date", "load"} <= set(first)


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--batches", "1", "-2"], ["--rounds", "1.5"]])
def test_no_rounds_and_empty_batches_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        wiring_parser("sample", "Doc.", (1, 2), 5).parse_args(words)
    assert end.value.code == 2
    assert f"must be a whole number above 0, not {words[-1]}" in capsys.readouterr().err
