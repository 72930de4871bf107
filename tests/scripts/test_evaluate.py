"""medsora.evaluation.command, medsora.evaluation.settings: the evaluation's command line: every option
explained, options that do not fit, exit statuses.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import pytest
import torch
import transformers

import evaluate
from medsora.config.choices import METRICS
from medsora.data.reading.decoding import VideoReader
from medsora.evaluation.metrics.weight_files import PUBLISHED
from medsora.evaluation.settings import EvaluationSettings
from medsora.evaluation.vae_quality import VaeSettings
from medsora.runtime.exit import exit_with_status
from tests.support.drifting_clips import write_clips


def status_and_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        exit_with_status(evaluate.main)
    return left.value.code, capsys.readouterr().err


def test_options_are_the_settings() -> None:
    """Names, and the defaults that the help promises, are those of the settings."""
    actions = {a.dest: a for a in evaluate.make_parser()._actions if a.dest != "help"}
    settings = {field.name: field for field in fields(EvaluationSettings)}
    assert set(actions) == set(settings) | {"vae", "names", "dry_run"}
    assert {field.name for field in fields(VaeSettings)} == evaluate.OF_A_VAE
    for name, field in settings.items():
        promised = re.search(r"\(default: (.*)\)", actions[name].help)
        if promised:
            assert field.default is not MISSING
            default = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
            assert promised[1] == default
    assert all(name in actions["metrics"].help for name in METRICS)
    assert all(name in actions["weights"].help for name in PUBLISHED)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --fake DIR"),
        (["--fake", "b", "--vae", "c"], "give either --fake DIR"),
        (["--vae", "c", "--bootstrap", "5"], "has no --bootstrap"),
        (["--vae", "c"], "there is no folder a"),
        (["--fake", "b", "--weights", "fvd"], "--weights takes NAME=PATH"),
        (["--fake", "b"], "there is no folder b"),
        (["--fake", "b", "--clips", "9,1"], "clips must be at least 2, not 1"),
        (["--vae", "c", "--clips", "9,9"], "give --clips one number"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, error = status_and_error(monkeypatch, capsys, "--real", "a", *arguments)
    assert status == 2
    assert sentence in error
    assert error.count("\n") == 1


def test_a_number_of_clips_that_is_none_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.make_parser().parse_args(["--real", "a", "--clips", "9;1"])
    assert (
        "--clips: must be a number of clips, or several with commas between, not 9;1"
        in capsys.readouterr().err
    )


def test_each_warning_appears_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, which shows both streams, and in the page that is kept."""
    monkeypatch.chdir(tmp_path)
    real, fake = write_clips(tmp_path / "a", range(3)), write_clips(tmp_path / "b", range(2, 5))
    (fake / "broken.mp4").write_bytes(b"no video")
    arguments = ["--real", real, "--fake", fake, "--frames", "4", "--size", "48", "--metrics", "pixel"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()
    shown = capsys.readouterr()
    warnings = json.loads((tmp_path / "results" / "results.json").read_text())["warnings"]
    assert len(warnings) == len(set(warnings)) >= 4
    page = (tmp_path / "results" / "results.md").read_text()
    for warning in warnings:
        assert (shown.out + shown.err).count(warning) == page.count(warning) == 1
    assert "## Generated against real" in shown.out


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("fvd", "give it with --weights fvd=FILE"),
        ("cd-fvd", "give it with --weights cd-fvd=FILE"),
        ("fid", "give it with --weights inception=FILE"),
        ("is", "give it with --weights inception=FILE"),
        ("fc", "give its folder with --weights clip=FOLDER"),
    ],
)
def test_missing_weights_end_it_before_anything_is_decoded(
    metric: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both ways are named: a local file, or one start with a network."""

    def offline(*args: object, **options: object) -> None:
        raise URLError("no network")

    def refuse(*args: object, **options: object) -> None:
        pytest.fail("decoded a video")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(transformers.CLIPVisionModelWithProjection, "from_pretrained", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(VideoReader, "__init__", refuse)
    folder = write_clips(tmp_path / "clips", range(2), frames=16, size=16)
    wanted = ["--metrics", f"motion,{metric}", "--frames", "16", "--size", "16"]
    status, error = status_and_error(monkeypatch, capsys, "--real", folder, "--fake", folder, *wanted)
    assert status == 2
    assert f"{way}, or start this once where there is a network." in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
