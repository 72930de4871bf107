"""Videos and pictures come out upright, by the container's display matrix or by EXIF."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from medsora.data.checking.scan import scan_source
from medsora.data.reading.find import Source, find_sources
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames, read_last_frames
from tests.support.video_files import moving_frames

APPLIED = {
    (0, False, False): (),
    (90, False, False): ("rotated 270°",),  # FFmpeg counts against the clock
    (180, False, False): ("rotated 180°",),
    (270, False, False): ("rotated 90°",),
    (0, True, False): ("flipped left to right",),
    (0, False, True): ("flipped top to bottom",),
    (90, True, False): ("rotated 270° and flipped left to right",),
    (270, True, False): ("rotated 90° and flipped left to right",),
}


def encode_turned(path: Path, frames: np.ndarray, turn: tuple[int, bool, bool], codec: str = "ffv1") -> Path:
    """Write `frames` with a display matrix: turned against the clock by degrees, then mirrored."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.options = {"g": "12"} if codec == "ffv1" else {"g": "12", "crf": "10"}
        stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("turn", APPLIED, ids=str)
def test_videos_are_shown_as_their_container_specifies(tmp_path: Path, turn: tuple[int, bool, bool]) -> None:
    frames = moving_frames(30)
    degrees, left_right, up_down = turn
    upright = np.rot90(frames, degrees // 90, axes=(1, 2))
    upright = upright[:, :, ::-1] if left_right else upright
    upright = upright[:, ::-1] if up_down else upright
    path = encode_turned(tmp_path / "a.mkv", frames, turn)
    assert np.array_equal(read_frames(path), upright)
    assert np.array_equal(read_last_frames(path, 4), upright[-4:])
    scan = scan_source(Source(path, path.name))
    assert scan.applied == APPLIED[turn]
    assert (scan.height, scan.width) == upright.shape[1:3]
    assert np.array_equal(read_frames(path, 17, 5, seek_points=scan.seek_points), upright[17:22])


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_every_container_with_a_display_matrix_counts(tmp_path: Path, name: str) -> None:
    frames = moving_frames(20) // 4
    frames[:, :24, :32] = (230, 20, 20)  # red: the top left of what was recorded
    shown = read_frames(encode_turned(tmp_path / name, frames, (270, False, False), "libx264"))
    assert shown.shape == (20, 64, 48, 3)
    red = (shown[..., 0] > 180) & (shown[..., 1] < 90)
    assert red[:, 4:28, 28:44].all()  # a quarter turn with the clock: now at the top right
    assert not red[:, 36:, :20].any()


def test_a_recorder_held_upside_down(tmp_path: Path) -> None:
    frames = moving_frames(20)
    frames[:, :24, :32] = (230, 20, 20)
    path = encode_turned(tmp_path / "a.mp4", frames, (180, False, False), "libx264")
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44  # in the track's header, version 0
    written = struct.unpack(">9i", content[matrix : matrix + 36])
    assert [written[k] for k in (0, 1, 3, 4)] == [-0x10000, 0, 0, -0x10000]
    assert read_frames(path, 0, 1)[0, 40, 56, 0] > 180


def test_a_turn_by_anything_else_is_refused(tmp_path: Path) -> None:
    path = encode_turned(tmp_path / "a.mp4", moving_frames(20), (30, False, False), "libx264")
    scan = scan_source(Source(path, path.name))
    assert scan.problem == "is to be shown turned by other than quarter turns"


KINDS = {
    "a.jpg": np.uint8,
    "a.png": np.uint8,
    "a.webp": np.uint8,
    "a.tif": np.uint8,
    "deep.png": np.uint16,
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_by_exif(tmp_path: Path, name: str, orientation: int) -> None:
    (tmp_path / "run").mkdir()
    picture = moving_frames(1)[0]
    if KINDS[name] == np.uint16:
        picture = picture[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "run" / name
    Image.fromarray(picture).save(path, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    plain = Image.fromarray((picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture)
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain).convert("RGB")).astype(int)
    tolerance = 12 if name == "a.jpg" else 0
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= tolerance
    (source,) = find_sources(tmp_path / "run").sources
    scan = scan_source(source)
    assert (scan.height, scan.width) == expected.shape[:2]
    assert bool(scan.applied) == (orientation > 1)


def test_deep_tiffs_to_be_turned_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(moving_frames(1)[0, ..., 0].astype(np.uint16)).save(tmp_path / "a.tif", exif=exif)
    with pytest.raises(ValueError, match="that is to be rotated 90°; save it as PNG"):
        read_image(tmp_path / "a.tif")


def test_a_few_turned_pictures_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for number, frame in enumerate(moving_frames(5)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png", exif=exif if number < 2 else None)
    (source,) = find_sources(tmp_path).sources
    assert scan_source(source).applied == ("rotated 180° (2 of 5)",)
    assert np.array_equal(read_frames(tmp_path)[1], moving_frames(2)[1, ::-1, ::-1])


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(moving_frames(1)[0]).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png"), moving_frames(1)[0])
