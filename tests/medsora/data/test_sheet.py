"""Contact sheets: right frames, whole-pixel enlargement, rows of different sizes, whole files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.data.reading.find import find_sources
from medsora.data.reading.frame_folder import list_frames
from medsora.data.sheet import contact_sheet, is_drawn, save_image
from medsora.training.run.report import SHOWN
from tests.support.paths import ROOT


def test_rows_show_evenly_spaced_frames_enlarged_by_whole_pixels() -> None:
    frames = (
        np.zeros((9, 10, 12, 3), np.uint8) + (np.arange(9) * 20 + 40).astype(np.uint8)[:, None, None, None]
    )
    sheet = contact_sheet([("", frames)], columns=3, scale=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 3 * 24 + 2 * 2
    line = sheet[-12, :, 0]
    assert [line[5], line[26 + 5], line[52 + 5]] == [40, 120, 200]
    picture = sheet[-2 - 20 : -2, :24]
    assert (picture == 40).all()


def test_rows_of_different_sizes_and_long_labels_fit() -> None:
    rows = [
        ("short", np.full((2, 8, 8, 3), 255, np.uint8)),
        ("a long label " * 9, np.full((5, 30, 9, 3), 9, np.uint8)),
    ]
    sheet = contact_sheet(rows, columns=4, scale=1)
    assert sheet[:18, :40].max() > 150  # the label is there
    assert sheet.shape[1] > 300
    assert contact_sheet(rows).shape[0] > 256


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
    with pytest.raises(ValueError, match="the row 'x' must be uint8"):
        contact_sheet([("x", np.zeros((2, 8, 8, 3)))])


def test_images_are_written_whole(tmp_path: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_image(tmp_path / "new" / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    with pytest.raises(OSError, match=r"b\.png cannot be written"):
        save_image(tmp_path / "new" / "a.png" / "b.png", image)


def drawn_names() -> list[str]:
    """Every picture that MedSora's source names, with something in each placeholder, and a run's curves."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "medsora").rglob("*.py")]
    found = {name for text in texts for name in re.findall(r'"([^"\s/*\\]+\.png)"', text)}
    frames = {"frame-{number:05d}.png", "{number:04d}.png", "{self.name}-{frame:03d}.png", "mask.png"}
    found -= frames | {"{Path(options.folder).resolve().name}.png"}  # the last one has any name
    curves = {f"{prefix.strip('/').replace('/', '-')}.png" for prefix in SHOWN}
    return sorted({re.sub(r"\{[^}]*\}", "0001500", name) for name in found} | curves)


def test_pictures_that_our_commands_draw_beside_clips_are_no_clips(tmp_path: Path) -> None:
    names = drawn_names()
    assert {"contact-sheet.png", "step-0001500.png", "motion.png", "sheet-0001500.png", "lr.png"} <= set(
        names
    )
    assert [name for name in names if not is_drawn(name)] == []
    picture = np.zeros((8, 8, 3), np.uint8)
    for name in [*names, *(f"step-{step:07d}.png" for step in range(20))]:
        save_image(tmp_path / name, picture)
        save_image(tmp_path / "video-00000" / name, picture)
    frames = [tmp_path / "video-00000" / f"frame-{number:05d}.png" for number in range(3)]
    for path in frames:
        save_image(path, picture)
    assert [source.name for source in find_sources(tmp_path).sources] == ["video-00000"]
    assert list_frames(tmp_path / "video-00000") == frames
