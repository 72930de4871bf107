"""tools.moving_picture: every frame is in it, it stays below its size, and it says what it cannot draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.errors import BadInput
from tools.moving_picture import frames_of, write_moving


def moving(frames: int) -> dict[str, np.ndarray]:
    shade = np.linspace(20, 235, frames).astype(np.uint8)
    clip = np.broadcast_to(shade[:, None, None, None], (frames, 32, 32, 3))
    return {"phantom (held out)": np.stack([clip] * 2), "generated": np.stack([clip[::-1]] * 2)}


def test_every_frame_of_every_row_is_there(tmp_path: Path) -> None:
    pictures = frames_of(moving(5), ["polyp", "neither"])
    write_moving(tmp_path / "out.webp", pictures, 100_000)
    with Image.open(tmp_path / "out.webp") as found:
        assert (found.n_frames, found.size, found.info["loop"]) == (5, pictures[0].size, 0)
        for number, picture in enumerate(pictures):
            found.seek(number)
            difference = np.asarray(found.convert("RGB")).astype(int) - np.asarray(picture)
            assert abs(difference).mean() < 4


def test_it_becomes_coarser_until_it_fits_or_reports_that_it_cannot(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    pictures = [Image.fromarray(frame) for frame in noise]
    best = write_moving(tmp_path / "best.webp", pictures, 10**6)
    assert write_moving(tmp_path / "small.webp", pictures, best - 1) < best
    with pytest.raises(BadInput, match="even at quality 35"):
        write_moving(tmp_path / "none.webp", pictures, 100)
    assert not (tmp_path / "none.webp").exists()
