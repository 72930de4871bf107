"""tools.split_in_time: no frame is on both sides, and the gap lies on neither."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.errors import BadInput
from tools.split_in_time import main, split


def pictures(folder: Path, count: int) -> None:
    """Write frames whose brightness is their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number:04}.png")


def numbers(folder: Path) -> list[int]:
    return [int(np.asarray(Image.open(path))[0, 0, 0]) for path in sorted(folder.iterdir())]


def test_later_frames_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pictures(tmp_path / "data" / "a", 40)
    pictures(tmp_path / "data" / "short", 6)
    out = tmp_path / "out"
    command = ["split_in_time", str(tmp_path / "data"), str(out), "--gap", "5", "--size", "8"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert numbers(out / "train" / "a") == list(range(25))
    assert numbers(out / "later" / "a") == list(range(30, 40))
    assert not (out / "train" / "short").exists()
    output = capsys.readouterr().out
    assert "a: 25 frames to train on, 10 later" in output
    assert "short: left out, 6 frames are too few for a gap of 5" in output
    with pytest.raises(BadInput, match="exists; name a new folder"):
        main()


def test_nothing_long_enough_is_one_sentence(tmp_path: Path) -> None:
    pictures(tmp_path / "data" / "short", 6)
    with pytest.raises(BadInput, match="too few"):
        split(tmp_path / "data", tmp_path / "out", 0.25, 16, 8)
    assert not (tmp_path / "out").exists()
