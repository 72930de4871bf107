"""medsora.data.reading.decoding: a disc that is round on the screen is round in a clip, whatever the shape of
the stored pixels.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from medsora.data.checking.scan import Scan, scan_source
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import read_frames

CODECS = {
    ".mpg": ("mpeg2video", "yuv420p", {"b": "4M"}),
    ".avi": ("mpeg4", "yuv420p", {"b": "4M"}),
}
H264 = ("libx264", "yuv420p", {"crf": "10", "g": "12"})


def disc_video(path: Path, aspect: Fraction, *, width: int = 180, height: int = 144, turn: int = 0) -> Path:
    """Write a disc, 100 pixels across, that is round when pixels are `aspect` times as wide as high."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    distance = np.hypot((columns - width / 2) * float(aspect), rows - height / 2)
    frame = np.repeat(np.where(distance < 50, 240, 40)[..., None], 3, -1).astype(np.uint8)
    codec, pixel_format, options = CODECS.get(path.suffix, H264)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, pixel_format, options
        stream.codec_context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def scan_of(path: Path) -> Scan:
    return scan_source(Source(path, path.name))


def disc_size(frame: np.ndarray) -> tuple[int, int]:
    """Return height and width of the disc."""
    disc = frame.min(-1) > 140
    return int(disc.any(1).sum()), int(disc.any(0).sum())


@pytest.mark.parametrize("name", ["a.mpg", "a.mp4", "a.mov", "a.mkv", "a.ts", "a.avi"])
@pytest.mark.parametrize("aspect", ["16/15", "64/45", "10/11", "4/3"])
def test_discs_are_round(tmp_path: Path, name: str, aspect: str) -> None:
    width, height = 180, 144
    aspect = Fraction(aspect)
    if name == "a.mpg":  # MPEG-2 stores one of two shapes of the whole picture
        aspect = (Fraction(16, 9) if aspect > Fraction(6, 5) else Fraction(4, 3)) * Fraction(height, width)
    path = disc_video(tmp_path / name, aspect)
    whole, clip = read_frames(path, 3, 1)[0], read_frames(path, 3, 1, size=96)[0]
    assert whole.shape == (height, round(width * aspect), 3)
    for frame in (whole, clip):
        tall, wide = disc_size(frame)
        assert abs(tall - wide) <= 2
    scan = scan_of(path)
    assert (scan.width, scan.height) == (round(width * aspect), height)
    assert scan.applied == (f"pixels of {aspect.numerator}:{aspect.denominator} made square",)


def test_pixels_are_stretched_before_the_picture_is_turned(tmp_path: Path) -> None:
    path = disc_video(tmp_path / "a.mp4", Fraction(4, 3), turn=90)
    tall, wide = disc_size(read_frames(path, 3, 1)[0])
    assert abs(tall - wide) <= 2
    assert read_frames(path).shape == (20, 240, 144, 3)
    assert (scan_of(path).width, scan_of(path).height) == (144, 240)


def test_almost_square_pixels_are_left_alone(tmp_path: Path) -> None:
    path = disc_video(tmp_path / "a.mkv", Fraction(1280, 1281))
    assert read_frames(path).shape == (20, 144, 180, 3)
    assert scan_of(path).applied == ()


@pytest.mark.parametrize("aspect", [Fraction(5), Fraction(1, 5)])
def test_absurd_pixels_are_refused(tmp_path: Path, aspect: Fraction) -> None:
    problem = scan_of(disc_video(tmp_path / "a.mp4", aspect)).problem
    assert (
        problem == f"its header claims pixels {aspect.numerator}/{aspect.denominator} times as wide as high"
    )
