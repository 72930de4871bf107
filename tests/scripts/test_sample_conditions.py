"""medsora.sampling.command: the sampling command with a label, a first frame, a longer film; and for
what is not available.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import sample_ddim
from medsora.data.reading.video_io import read_frames, write_video
from medsora.data.sheet import save_image
from medsora.sampling.pipeline import MedSoraPipeline
from tests.scripts.test_sample_ddim import no_loading, status_of
from tests.support.tiny_pipeline import write_conditional


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with labels that can begin with one frame or nine."""
    return write_conditional(tmp_path_factory.mktemp("conditional"))


def test_label_first_frame_and_window_on_the_command_line(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "out"
    save_image(picture, np.full((40, 40, 3), 120, np.uint8))
    common = ["--model", conditional, "--num-videos", 1, "--steps", 2, "--format", "frames", "--seed", 3]
    words = ["--label", "polyp", "--guidance", 2, "--first-frame", picture, "--frames", 26, "--window", 17]
    monkeypatch.setattr(sys, "argv", ["sample_ddim.py", *map(str, [*common, *words, "--out", out])])
    sample_ddim.main()
    video = read_frames(out / "video-00000")
    options = {"label": "polyp", "guidance": 2.0, "frames": 26, "window": 17, "num_inference_steps": 2}
    options["output_type"] = "uint8"
    given = np.full((1, 32, 16, 3), 120, np.uint8)
    expected = MedSoraPipeline.from_pretrained(conditional)(seeds=[3], first_frames=given, **options).frames[
        0
    ]
    assert np.array_equal(video, expected)
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert (settings["label"], settings["guidance"], settings["window"]) == ("polyp", 2.0, 17)
    assert settings["first_frames"][0] == 1
    for change in (["--label", "bleeding"], ["--guidance", 3], ["--frames", 27]):
        assert status_of(monkeypatch, *common, *words, *change, "--out", out) == 2
        assert "take another --out" in capsys.readouterr().err
    goes_on = [*common, "--first-frame", out / "video-00000", "--out", tmp_path / "next"]
    monkeypatch.setattr(sys, "argv", ["sample_ddim.py", *map(str, goes_on)])
    sample_ddim.main()
    assert json.loads((tmp_path / "next" / "manifest.json").read_text())["settings"]["first_frames"][0] == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--label", "ulcer"), "there is no label 'ulcer'; this model has bleeding, polyp"),
        (("--guidance", "3"), "no label is given"),
        (("--first-frame", "nothing.png"), "there is no file nothing.png"),
        (("--frames", "26", "--window", "16"), "window of 16|windows of 16"),
        (("--frames", "26"), "the next valid counts are 25 and 32"),
    ],
)
def test_impossible_requests_are_refused(
    conditional: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    no_loading(monkeypatch)
    assert status_of(monkeypatch, "--model", conditional, "--out", tmp_path / "out", *arguments) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_black_borders_are_cut_off_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bordered picture begins the very video that the picture without borders begins."""
    model = write_conditional(tmp_path / "model", crop="auto")
    plain = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    save_image(tmp_path / "plain.png", plain)
    save_image(tmp_path / "bordered.png", np.pad(plain, [(4, 4), (16, 16), (0, 0)]))
    common = ("--model", model, "--num-videos", 1, "--steps", 1, "--format", "frames")
    for name in ("plain", "bordered"):
        arguments = (*common, "--first-frame", tmp_path / f"{name}.png", "--out", tmp_path / name)
        monkeypatch.setattr(sys, "argv", ["sample_ddim.py", *map(str, arguments)])
        sample_ddim.main()
    videos = [read_frames(tmp_path / name / "video-00000") for name in ("plain", "bordered")]
    assert np.array_equal(*videos)


def test_a_video_at_another_rate_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = write_conditional(tmp_path / "model", rate=10.0)
    write_video(tmp_path / "v.mkv", np.full((12, 32, 16, 3), 120, np.uint8), 25, lossless=True)
    no_loading(monkeypatch)
    arguments = ("--model", model, "--out", tmp_path / "out", "--first-frame", tmp_path / "v.mkv")
    assert status_of(monkeypatch, *arguments) == 2
    assert "25 frames per second, but the model was trained at 10:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
