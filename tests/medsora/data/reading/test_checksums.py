"""medsora.data.reading.checksums: flipped bits in lossless videos and pictures are found, others are read."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from medsora.data.checking.scan import scan_source
from medsora.data.reading.checksums import has_damaged_pixels, has_damaged_slices
from medsora.data.reading.decoding import UnreadableVideo, VideoReader
from medsora.data.reading.find import Source
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames, write_video
from tests.support.video_files import moving_frames

FRAMES = moving_frames(12, 48, 64)


def encode(path: Path, pixel_format: str, **options: str) -> None:
    """Write FRAMES as FFV1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(10), options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for frame in FRAMES:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixel_format)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("pixel_format", ["bgr0", "yuv420p", "yuv420p10le"])
@pytest.mark.parametrize(
    "options",
    [{}, {"slicecrc": "2", "level": "4", "strict": "experimental"}, {"level": "3", "g": "6", "context": "1"}],
    ids=["default", "version 4", "several frames"],
)
def test_every_flipped_bit_of_a_packet_is_found(pixel_format: str, options, tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", pixel_format, **options)
    draw = random.Random(0)
    for packet in packets(tmp_path / "a.mkv"):
        assert not has_damaged_slices(packet)
        assert all(has_damaged_slices(flipped(packet, draw)) for _ in range(20))


@pytest.mark.parametrize("options", [{"slicecrc": "0", "level": "3"}, {"level": "1"}, {"level": "0"}])
def test_a_video_without_checksums_is_read(options, tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", "bgr0", **options)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.mkv"), FRAMES)


def test_a_flipped_bit_of_a_lossless_video_costs_the_clips_that_it_reaches(tmp_path: Path) -> None:
    """Where the video was checked before, no clip has another frame in its place; a new check finds it."""
    path, draw = tmp_path / "a.mkv", random.Random(0)
    write_video(path, FRAMES, 10, lossless=True)
    content, packet = path.read_bytes(), packets(path)[5]
    points = scan_source(Source(path, path.name)).seek_points
    for _ in range(20):
        path.write_bytes(content.replace(packet, flipped(packet, draw)))
        for first, count in ((0, 12), (3, 4), (5, 1), (6, 2), (7, 5)):
            with pytest.raises(UnreadableVideo, match="a packet does not decode"):
                read_frames(path, first, count, seek_points=points, intact=True)
        with pytest.raises(UnreadableVideo, match="a packet does not decode"):
            read_frames(path, intact=True)
        np.testing.assert_array_equal(read_frames(path, 0, 5, intact=True), FRAMES[:5])
        np.testing.assert_array_equal(read_frames(path, 8, 4, seek_points=points, intact=True), FRAMES[8:])
        assert "damaged near frame 5" in scan_source(Source(path, path.name)).remarks[0]


def test_frames_that_depend_on_a_damaged_one_are_left_out_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    encode(path, "bgr0", level="3", slicecrc="1", g="6")
    content, packet = path.read_bytes(), packets(path)[2]
    path.write_bytes(content.replace(packet, flipped(packet, random.Random(0))))
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader.frames()) == 8  # two before it, and those from the next key frame on
        assert reader.skipped_packets == 4


def test_the_last_packet_is_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, FRAMES, 10, lossless=True)
    content, packet = path.read_bytes(), packets(path)[-1]
    path.write_bytes(content.replace(packet, flipped(packet, random.Random(0))))
    with pytest.raises(UnreadableVideo, match="a packet does not decode"):
        read_frames(path, intact=True)


def test_every_flipped_bit_of_a_pictures_pixels_is_found(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.png", random.Random(0)
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)  # in several IDAT chunks
    content = path.read_bytes()
    assert content.count(b"IDAT") > 1
    assert not has_damaged_pixels(path)
    np.testing.assert_array_equal(read_image(path), noise)
    begin, end = content.index(b"IDAT"), content.index(b"IEND")
    for _ in range(50):
        path.write_bytes(content[:begin] + flipped(content[begin : end - 4], draw) + content[end - 4 :])
        with pytest.raises(UnreadableVideo):
            read_image(path)


def test_a_hole_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(FRAMES[0]).save(path)
    with path.open("r+b") as file:
        file.truncate(2**36)
    assert not has_damaged_pixels(path)
    np.testing.assert_array_equal(read_image(path), FRAMES[0])
