"""Folders of pictures: frames in order, eight bits of sixteen, a reason for every refused picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.frame_folder import list_frames, read_image


def test_pictures_are_listed_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b10.PNG", "b9.jpg", ".hidden.png", "notes.txt", "b9.tiff"):
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == ["b9.jpg", "b9.tiff", "b10.PNG"]
    for number in (0.04, 0.2, 0.12, 0.16, 0.08):
        (tmp_path / "seconds").mkdir(exist_ok=True)
        (tmp_path / "seconds" / f"{number}.png").touch()
    stems = [path.stem for path in list_frames(tmp_path / "seconds")]
    assert stems == ["0.04", "0.08", "0.12", "0.16", "0.2"]


def test_a_picture_is_rgb_of_eight_bits(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), colours)
    deep = np.array([[0, 257, 65535], [128 * 257, 256, 65278]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert np.array_equal(read_image(tmp_path / "deep.png"), expected)


def test_what_is_no_picture_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UnreadableVideo, match="its content is no picture"):
        read_image(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "whole.png"
    )
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableVideo, match="does not decode as a picture"):
        read_image(tmp_path / "cut.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableVideo, match="not a regular file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(UnreadableVideo, match="No such file"):
        read_image(tmp_path / "missing.png")
