"""Real clips are read as the generated clips' model was trained, or the difference is reported once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.evaluation import evaluate
from medsora.evaluation.report.results import Results
from medsora.sampling.synthetic import synthetic_tags
from tests.support.drifting_clips import drifting_clip

OPTIONS = {"frames": 4, "size": 32, "metrics": "motion"}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 25 frames per second."""
    folder = tmp_path_factory.mktemp("real")
    for seed in range(5):
        write_video(folder / f"{seed}.mkv", drifting_clip(seed, frames=24), 25, lossless=True)
    return folder


@pytest.fixture
def perfect(tmp_path: Path) -> Callable[..., Path]:
    """`perfect(rate, trained_on)`: what a perfect model trained at interval 3 generates: mirror images."""

    def write(rate: float = 8, trained_on: dict[str, Any] | None = None, seeds: range = range(5)) -> Path:
        for seed in seeds:
            frames = np.ascontiguousarray(drifting_clip(seed, frames=24)[::3, :, ::-1])
            tags = synthetic_tags("a test", trained_on or {})
            write_video(tmp_path / "fake" / f"{seed}.mkv", frames, rate, lossless=True, metadata=tags)
        return tmp_path / "fake"

    return write


@pytest.fixture
def run(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    monkeypatch.chdir(tmp_path)
    return lambda fake, **changes: evaluate(real, fake, **{**OPTIONS, **changes})


def about_speed(results: Results) -> list[str]:
    return [warning for warning in results.warnings if "train" in warning or "per second" in warning]


def test_the_default_command_compares_like_with_like(perfect: Callable, run: Callable) -> None:
    """A perfect model is as near with no option as with the right one, and no warning is needed."""
    fake = perfect(trained_on={"interval": 3, "crop": "none"})
    found, explicit = run(fake), run(fake, interval=3, crop="none")
    assert found.metrics() == explicit.metrics()
    assert found.sets["real"]["every_nth_frame"] == 3
    assert "whole frames" in found.protocol["crop"]
    assert found.protocol["trained_on"] == {"interval": 3, "crop": "none"}
    assert about_speed(found) == about_speed(explicit) == []
    wrong = run(fake, interval=1, crop="none")
    key = "flow_magnitude_distance"
    assert wrong.metrics()[key] > 10 * found.metrics()[key]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"interval": 1}, "with interval 1, but the generated clips' model was trained with interval 3"),
        ({"crop": "none"}, "with crop none, but the generated clips' model was trained with crop auto"),
        ({"crop": [0, 0.1, 0, 0]}, "leave --crop out"),
    ],
)
def test_an_option_that_contradicts_is_obeyed_and_reported_once(
    changes: dict, sentence: str, perfect: Callable, run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(perfect(trained_on={"interval": 3, "crop": "auto"}), **changes)
    (warning,) = about_speed(results)
    assert sentence in warning
    assert results.sets["real"]["every_nth_frame"] == changes.get("interval", 3)
    assert capsys.readouterr().err.count(warning) == 1


def test_fixed_parts_are_taken_over(perfect: Callable, run: Callable) -> None:
    results = run(perfect(trained_on={"interval": 3, "crop": [0.25, 0, 0, 0]}))
    assert results.sets["real"]["borders_cut_off"]["0.mkv"] == "cropped by top 8 pixels"
    assert results.sets["generated"]["borders_cut_off"] == {}


@pytest.mark.parametrize(
    ("rate", "trained_on", "interval", "sentence"),
    [
        (8, {}, 1, "at 25 frames per second, but generated ones play at 8"),
        (8, {}, 3, None),
        (8, {"interval": 3}, None, None),  # the file's own rate is no evidence against it
        (25, {"interval": 3}, None, None),
        (8, {"rate": 8.4}, 3, None),
        (8, {"rate": 12.5}, 3, "or --rate 12.5"),
        (8, {"rate": 10}, None, None),  # real clips are taken by time, at that rate
    ],
)
def test_rates_that_differ_are_reported_once(
    rate: float,
    trained_on: dict,
    interval: int | None,
    sentence: str | None,
    perfect: Callable,
    run: Callable,
) -> None:
    changes = {} if interval is None else {"interval": interval}
    warnings = about_speed(run(perfect(rate, trained_on), **changes))
    assert len(warnings) == (sentence is not None)
    assert sentence is None or sentence in warnings[0]


def test_clips_of_models_that_were_trained_differently_are_reported(perfect: Callable, run: Callable) -> None:
    perfect(trained_on={"interval": 3}, seeds=range(3))
    results = run(perfect(trained_on={"interval": 2}, seeds=range(3, 5)))
    (warning,) = about_speed(results)
    assert "(3 clips: interval 3; 2 clips: interval 2)" in warning
    assert results.sets["real"]["every_nth_frame"] == 3


def test_no_folder_of_generated_clips(run: Callable) -> None:
    with pytest.raises(BadInput, match="there is no folder nowhere"):
        run("nowhere")
