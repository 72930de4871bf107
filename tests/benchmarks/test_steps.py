"""benchmarks.steps.run, benchmarks.steps.__main__: samplers at few steps against DDIM at many."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.steps import run as steps_run
from benchmarks.steps.run import CHOICES, DEFAULT_STEPS, Point, conclusions, latents, scheduler_of
from medsora.diffusion import GaussianDiffusion
from medsora.errors import BadInput
from medsora.runtime.files import write_json
from medsora.sampler import SCHEDULERS
from tests.support.tiny_pipeline import GEOMETRY, tiny_pipeline, write_checkpoint, write_run

Command = Callable[..., None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", (5,))
    write_json(run / "pipeline.json", GEOMETRY | {"size": [32, 32]})
    return run


@pytest.fixture
def command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(steps_run, "REFERENCE_STEPS", 40)

    def run(*words: str) -> None:
        out = ["--out", str(tmp_path / "out"), "--videos", "2", "--batch-size", "1"]
        monkeypatch.setattr(sys, "argv", ["steps", str(model), *out, *words])
        steps_run.main()

    return run


def test_a_table_is_measured_once_and_again_only_where_something_is_missing(
    command: Command,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    samplers = ("--samplers", "ddim", "dpmpp", "--steps", "4", "20")
    command(*samplers, "--dry-run")
    assert "4 of 4 points" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    command(*samplers)
    rows = list(csv.DictReader((tmp_path / "out" / "steps.csv").open(encoding="utf-8")))
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        (name, count, count) for name in ("ddim", "dpmpp") for count in ("4", "20")
    ]
    rmse, db = ([float(row[key]) for row in rows] for key in ("latents, RMSE", "frames, PSNR in dB"))
    assert 0 < rmse[1] < rmse[0]
    assert db[1] > db[0] > 0
    assert all(float(row["untrained pyramid distance"]) > 0 for row in rows)
    assert (tmp_path / "out" / "steps.svg").is_file()

    sampled = []
    real = steps_run.scheduler_of
    monkeypatch.setattr(
        steps_run, "scheduler_of", lambda pipeline, *point: sampled.append(point) or real(pipeline, *point)
    )
    command("--samplers", "ddim", "--steps", "4", "40", "20")
    assert sampled == [("ddim", 40)] * 2  # a batch of one video each
    exact = list(csv.DictReader((tmp_path / "out" / "steps.csv").open(encoding="utf-8")))[1]
    assert (float(exact["latents, RMSE"]), exact["frames, PSNR in dB"]) == (0, "inf")

    write_checkpoint(model, 9)
    with pytest.raises(BadInput, match="is about another weights_sha256"):
        command(*samplers)


def test_latents_are_those_of_the_pipeline() -> None:
    """Joint images that a mixed denoiser carries along included."""
    pipeline = tiny_pipeline(mixing="mixed")
    pipeline.denoiser.eval()
    for name in ("ddim", "unipc"):
        expected = pipeline(num_inference_steps=3, seeds=[3, 4], sampler=name, output_type="latent").frames
        found = latents(pipeline, scheduler_of(pipeline, name, 3), [3, 4])
        torch.testing.assert_close(found, expected)


class BestDenoiser:
    """In place of a `PreparedDenoiser`: the best one if all data are N(0, 1/4)."""

    def __init__(self, *_: object, **__: object) -> None:
        self.alpha_bar = GaussianDiffusion().alpha_bar

    def __call__(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = float(self.alpha_bar[t[0]])
        return (1 - alpha_bar) ** 0.5 / (1 - 0.75 * alpha_bar) * z


def test_every_sampler_comes_near_the_same_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_run, "PreparedDenoiser", BestDenoiser)
    pipeline = tiny_pipeline()
    expected = latents(pipeline, scheduler_of(pipeline, "ddim", 1000), [3])
    for name in CHOICES:
        z = latents(pipeline, scheduler_of(pipeline, name, 100), [3])
        assert float((z - expected).norm() / expected.norm()) < 0.06, name
        for steps in DEFAULT_STEPS:
            scheduler = scheduler_of(pipeline, name, steps)
            assert type(scheduler).__name__ in SCHEDULERS, name
            assert len(scheduler.timesteps) in (steps, steps + (name == "pndm")), (name, steps)
            assert all(0 <= t == int(t) <= 999 for t in scheduler.timesteps.tolist()), (name, steps)


def test_conclusions_name_the_fewest_evaluations_that_reach_a_goal() -> None:
    def point(sampler: str, steps: int, db: float) -> Point:
        return Point(sampler, steps, steps, 0.1, db, {})

    points = [
        point("ddim", 250, 58.0),
        point("dpmpp", 25, 56.9),
        point("dpmpp", 30, 57.1),
        point("x", 8, 45.5),
    ]
    default, near, visible = conclusions(points)
    assert default == "ddim with 250 steps: 58.00 dB."
    assert near.startswith("57.00 dB in at most 30 evaluations: reached; first reached by dpmpp with 30")
    assert visible.startswith("45.00 dB in at most 8 evaluations: reached; first reached by x with 8")
    assert "missed; first reached by dpmpp with 25" in conclusions(points[:3])[2]
    assert conclusions(points[1:])[0].startswith("ddim with 250 steps was not measured")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", "0"), "0 sampling steps are not possible"),
        (("--videos", "0"), "--videos is 0"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--seed", "-1"), "--seed is -1"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        command(*words)


def test_damaged_points_are_one_sentence(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "points.json").write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        command("--dry-run")
