"""medsora.data.__main__, medsora.data.checking.view: `python -m medsora.data`: what it prints, writes and
answers, as a user meets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medsora.data import __main__ as commands
from medsora.data.checking.check import check_folder
from medsora.runtime.exit import exit_with_status
from tests.support.paths import ROOT
from tests.support.video_files import cut, encode, moving_frames


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["medsora.data", *map(str, arguments)])
    try:
        exit_with_status(commands.main)
    except SystemExit as leaving:
        return leaving.code
    return 0


def test_check_lists_everything_and_draws_a_sheet(tmp_path: Path) -> None:
    encode(tmp_path / "corpus" / "good.mp4", moving_frames(120))
    encode(tmp_path / "corpus" / "short.mp4", moving_frames(9))
    (tmp_path / "corpus" / "text.mp4").write_text("text")
    done = subprocess.run(
        [sys.executable, "-m", "medsora.data", "check", "corpus", "--size", "32"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for expected in ("good.mp4", "h264", "120", "64x48", "text.mp4", "a text file", "too short: 9 frames"):
        assert expected in words
    assert "1 of 3 sources can be used: 120 frames, 2 clips of 17 frames at interval 3" in words
    sheet = Image.open(tmp_path / "runs" / "check" / "corpus.png")
    assert sheet.width == 8 * 32 * 4 + 7 * 2
    assert len(list((tmp_path / "runs" / "cache").iterdir())) == 1


def test_check_answers_bad_input_with_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    cut(encode(tmp_path / "cut" / "a.mp4", moving_frames(60)), 0.6)
    encode(tmp_path / "good" / "a.mp4", moving_frames(60))
    (tmp_path / "file").touch()
    for arguments, sentence in (
        (["absent"], "there is no folder"),
        (["empty"], "holds no videos"),
        (["cut"], "a.mp4: truncated"),
        (["good", "--frames", 0], "--frames is 0"),
        (["good", "--size", 8, 8, 8], "--size takes"),
        (["good", "--sheet", "file/sheet.png"], "file"),
        (["good", "--sheet", "sheet.xyz"], "xyz"),
    ):
        assert run(monkeypatch, "check", *arguments) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_phantom_makes_a_folder_that_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = ["--frames", 5, "--size", 32, "--workers", 1]
    assert run(monkeypatch, "phantom", "out", "--videos", 2, *numbers) == 0
    report = check_folder(tmp_path / "out", frames=5, interval=1, cache_path=tmp_path / "check.json")
    assert [video.scan.frames for video in report.usable] == [5, 5]
    assert run(monkeypatch, "phantom", "out", "--videos", 0, *numbers) == 2


@pytest.mark.parametrize("command", [[], ["check"], ["phantom"]])
def test_help_is_complete(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *command, "--help") == 0
    text = capsys.readouterr().out
    assert "exit status" in text
    assert "None" not in text
