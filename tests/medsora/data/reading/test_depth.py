"""Deep pictures and frames keep their brightness; where white cannot be known they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from medsora.data.checking.scan import Scan, scan_source
from medsora.data.reading.find import find_sources
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames, read_last_frames
from tests.support.video_files import encode, moving_frames

FRAMES = np.concatenate([moving_frames(6), np.full((1, 48, 64, 3), 255, np.uint8)])
GREY = FRAMES[..., 1].astype(np.float64)


def colour(path: Path, frame: np.ndarray, scale: int) -> None:
    assert cv2.imwrite(str(path), frame[..., ::-1].astype(np.uint16) * scale)


def grey(path: Path, frame: np.ndarray, scale: float, kind: type) -> None:
    Image.fromarray((frame[..., 1] * np.float64(scale)).astype(kind)).save(path)


def pgm(path: Path, frame: np.ndarray) -> None:
    values = (frame[..., 1].astype(np.uint16) * 16).astype(">u2").tobytes()
    path.write_bytes(b"P5 64 48 4095\n" + values)


KINDS: dict[str, tuple[Callable[[Path, np.ndarray], None], str, tuple[str, ...]]] = {
    "10 of 16 bits, TIFF": (lambda p, f: grey(p, f, 4, np.uint16), ".tif", ("values 0 to 1023",)),
    "12 of 16 bits, PNG": (lambda p, f: grey(p, f, 16, np.uint16), ".png", ("values 0 to 4095",)),
    "8 of 16 bits, PNG": (lambda p, f: grey(p, f, 1, np.uint16), ".png", ("values 0 to 255",)),
    "16 bits, PNG": (lambda p, f: grey(p, f, 257, np.uint16), ".png", ()),
    "8 of 32 bits, TIFF": (lambda p, f: grey(p, f, 1, np.int32), ".tif", ("values 0 to 255",)),
    "float 0..1, TIFF": (lambda p, f: grey(p, f, 1 / 255, np.float32), ".tif", ("values 0 to 1",)),
    "float 0..255, TIFF": (lambda p, f: grey(p, f, 1, np.float32), ".tif", ("values 0 to 255",)),
    "12 of 16 bits, colour PNG": (lambda p, f: colour(p, f, 16), ".png", ("values 0 to 4095",)),
    "10 of 16 bits, colour TIFF": (lambda p, f: colour(p, f, 4), ".tif", ("values 0 to 1023",)),
    "16 bits, colour PNG": (lambda p, f: colour(p, f, 257), ".png", ()),
    "12 bits, PGM": (pgm, ".ppm", ()),
}


def scan_of(folder: Path) -> Scan:
    (source,) = find_sources(folder).sources
    return scan_source(source)


@pytest.mark.parametrize("kind", KINDS)
def test_brightness_is_kept(tmp_path: Path, kind: str) -> None:
    write, ending, applied = KINDS[kind]
    for number, frame in enumerate(FRAMES):
        write(tmp_path / f"{number}{ending}", frame)
    expected = FRAMES if "colour" in kind else GREY[..., None].repeat(3, -1)
    scan = scan_of(tmp_path)
    assert (scan.problem, scan.applied) == (None, tuple(f"{words} scaled to 0 to 255" for words in applied))
    for interpretation in ({"interpretation": scan.interpretation}, {}):
        assert np.abs(read_frames(tmp_path, **interpretation) - expected.astype(float)).max() <= 2
    assert np.abs(read_image(tmp_path / f"{len(FRAMES) - 1}{ending}") - 255.0).max() <= 2


def test_white_is_that_of_the_whole_folder(tmp_path: Path) -> None:
    grey(tmp_path / "0.png", FRAMES[0] // 8, 16, np.uint16)  # dark: alone it would pass for fewer bits
    grey(tmp_path / "1.png", FRAMES[1], 16, np.uint16)
    assert np.abs(read_frames(tmp_path)[0, ..., 0] - GREY[0] // 8).max() <= 1


BAD = {
    "reach 2": lambda p: grey(p, FRAMES[-1], 2 / 255, np.float32),
    "reach 70000": lambda p: grey(p, FRAMES[-1], 70000 / 255, np.int32),
    "begin below zero": lambda p: Image.fromarray(GREY[0].astype(np.int32) - 200).save(p),
    "no numbers": lambda p: Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(p),
    "0 is white": lambda p: Image.fromarray(GREY[0].astype(np.uint16)).save(p, tiffinfo={262: 0}),
    "floating-point colours": lambda p: cv2.imwrite(str(p), FRAMES[0].astype(np.float32) / 255),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_known_is_refused(tmp_path: Path, reason: str) -> None:
    BAD[reason](tmp_path / "0.tif")
    with pytest.raises(ValueError, match=reason):
        read_image(tmp_path / "0.tif")
    assert reason in scan_of(tmp_path).problem


def test_integers_among_floats_are_refused(tmp_path: Path) -> None:
    grey(tmp_path / "0.tif", FRAMES[0], 16, np.uint16)
    grey(tmp_path / "1.tif", FRAMES[0], 1 / 255, np.float32)
    assert "mixed" in scan_of(tmp_path).problem


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le", "gray12le", "gray16le"])
def test_grey_videos_keep_their_brightness(tmp_path: Path, pixel_format: str) -> None:
    frames = GREY[..., None].repeat(3, -1).astype(np.uint8)
    path = encode(tmp_path / "a.mkv", frames, "ffv1", pixel_format)
    found = read_frames(path)
    assert np.abs(found.astype(int) - frames).max() <= 2
    assert (found[..., 0] == found[..., 2]).all()
    assert scan_of(path).applied == ()


def test_twelve_bits_in_a_sixteen_bit_video(tmp_path: Path) -> None:
    frames = FRAMES >> 4
    path = encode(tmp_path / "a.mkv", frames, "ffv1", "gray16le")
    scan = scan_of(path)
    assert scan.applied == ("values 0 to 4095 scaled to 0 to 255",)
    found = read_frames(path, interpretation=scan.interpretation)
    assert found.max() > 235
    assert found.mean() > 10 * read_frames(path).mean()
    assert np.array_equal(read_last_frames(path, 3), found[-3:])
