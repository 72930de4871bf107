"""The family's table: what is counted and measured, what does not fit, and what is concluded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import family
from benchmarks.cost import GIB, Case, Cost, Measured
from benchmarks.family import CAUSAL, CONTROL, MEDSORA, PUBLISHED, Point, System
from medsora.errors import BadInput
from medsora.runtime.files import END_MARK

COST = Cost(MEDSORA, 16, 4, 4_000_000, 1_000_000_000, 2_000_000_000, 2**20)


def point(name: str, flops: float, seconds: float) -> Point:
    times = {"sample": [seconds], "train": [seconds]}
    return Point(replace(COST, preset=name, sampling_flops=int(flops)), 64, times, [seconds])


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["family", "--frames", "16", "--size", "64", *words])
    family.main()


def test_the_systems_differ_by_their_names() -> None:
    costs = {system.name: system.counted(16, 64) for system in family.family("tiny")}
    assert [costs[name].latents for name in (MEDSORA, CONTROL, PUBLISHED, CAUSAL)] == [4, 4, 16, 4]
    assert costs[CONTROL].sampling_flops != costs[MEDSORA].sampling_flops
    images = [system.case(16, 64).image_latents for system in family.family("tiny")]
    assert images == [2, 2, 8, 2], "of 8 images: one each, or one for four"
    assert costs[PUBLISHED].sampling_flops > 3 * costs[CAUSAL].sampling_flops
    assert costs[CONTROL].parameters == pytest.approx(costs[MEDSORA].parameters, rel=0.02)


def test_points_are_measured_in_turns_and_written_into_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def steps(case: Case) -> tuple:
        return lambda: calls.append(f"train {case.preset}"), lambda: calls.append(case.preset)

    def in_a_fresh_process(work: object, case: Case, rounds: int) -> Measured | None:
        return Measured(3 * GIB, 1.0, 1.0) if case.preset == "tiny" else None  # out of memory

    systems = [System(MEDSORA, "tiny"), System(CONTROL, "S")]
    monkeypatch.setattr(System, "counted", lambda self, *_: replace(COST, preset=self.name))
    monkeypatch.setattr(family, "family", lambda size: systems)
    monkeypatch.setattr(family, "crossing", lambda model: 300.0)
    monkeypatch.setattr(family, "both_steps", steps)
    monkeypatch.setattr(family, "in_a_fresh_process", in_a_fresh_process)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    page = tmp_path / "comparison.md"
    page.write_text(f"before\n{family.BEGIN}\nold\n{END_MARK}\nafter\n")
    monkeypatch.setattr(family, "PAGE", page)
    monkeypatch.setattr(family, "PICTURE", tmp_path / "family.svg")
    run(monkeypatch, "--rounds", "2", "--steps", "7", "--page", "--dry")
    of_turns = ["tiny", "train tiny", "S", "train S"]
    assert calls[:12] == 3 * of_turns
    assert calls[12:] == ["tiny"] * 21, "videos of tiny are really sampled, those of S are steps times"
    text = page.read_text()
    assert "old" not in text
    assert "from about 300 tokens per frame" in text
    rows = [line for line in text.splitlines() if line.startswith("| MedSora")]
    assert ["| 3.00 |" in row for row in rows] == [True, False]
    assert (tmp_path / "family.svg").stat().st_size


def test_what_does_not_fit_is_not_run_with_its_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    options = type("Options", (), {"rounds": 4, "limit_s": 30.0})
    device = torch.device("cpu")
    monkeypatch.setattr(family, "free_bytes", lambda device: 2 * GIB)
    assert family.too_large(COST, options, {}, device) == ""
    assert family.too_large(COST, options, {MEDSORA: 2e9}, device) == ""
    assert "about 35 s" in family.too_large(COST, options, {MEDSORA: 1e9}, device)
    large = replace(COST, activation_bytes=3 * GIB)
    why = family.too_large(large, options, {}, device)
    assert why.startswith("about 3.1 GiB, 2.0 are free")
    assert Point(large, 64, {}, [], not_run=why).row()[6:] == [f"not run: {why}", "–", "–", "–"]


def test_models_that_take_turns_must_fit_together_and_whole_videos_into_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[str] = []

    def turns(works: dict, rounds: int, device: torch.device) -> dict:
        taken.extend(works)
        return {name: [3.0] * rounds for name in works}

    cost = replace(COST, parameters=GIB // 20, activation_bytes=GIB)  # together 2 GiB
    systems = [System(name, "tiny") for name in (MEDSORA, CONTROL, PUBLISHED)]
    monkeypatch.setattr(System, "counted", lambda self, *_: replace(cost, preset=self.name))
    monkeypatch.setattr(family, "free_bytes", lambda device: 3 * GIB)
    monkeypatch.setattr(family, "both_steps", lambda case: (None, None))
    monkeypatch.setattr(family, "take_turns", turns)
    monkeypatch.setattr(family, "in_a_fresh_process", mock.MagicMock())
    for limit_s, whole in ((90.0, True), (89.0, False)):
        taken.clear()
        options = type("Options", (), {"rounds": 2, "steps": 10, "limit_s": limit_s})
        points = family.run_point(systems, 16, 64, options, torch.device("cpu"), {})
        assert [point.not_run for point in points] == ["", "", "about 4.0 GiB with the others, 3.0 are free"]
        assert taken.count("video") == (2 if whole else 0)
        assert points[0].video_s == ([3.0] * 2 if whole else [30.0] * 2)


def test_the_crossing_lies_between_the_counted_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def flops(self: System, frames: int, size: int) -> Cost:
        tokens = (size / 16) ** 2
        return replace(COST, sampling_flops=int(400 + tokens if self.overrides else 3 * tokens))

    monkeypatch.setattr(System, "counted", flops)
    assert family.crossing("tiny", (64, 128)) == 16
    monkeypatch.setattr(
        System,
        "counted",
        lambda self, _, size: replace(COST, sampling_flops=(size * size if self.overrides else 40_000)),
    )
    assert family.crossing("tiny", (64, 128)) is None
    assert 64 < family.crossing("tiny", (128, 256)) < 256


def test_compressions_part_of_the_gap_is_stated() -> None:
    points = [point(MEDSORA, 1e9, 1.0), point(PUBLISHED, 16e9, 8.0), point(CAUSAL, 4e9, 4.0)]
    first, flops, seconds = family.conclusions(points, None)
    assert first.startswith("By FLOPs, attention stays cheaper")
    assert "takes 16.00 times MedSora's; the causal latents alone make it 4.00" in flops
    assert "50 % of the gap" in flops
    assert "33 % of the gap" in seconds


def test_a_dry_run_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(family, "run_point", lambda *_: pytest.fail("ran"))
    run(monkeypatch, "--dry-run")
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--limit-s", "0"], "--limit-s is 0.0"),
        (["--frames", "12"], "12"),
        (["--plot", "a.gif"], "must end in .svg or .png"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        run(monkeypatch, *words)
