"""medsora.data.reading.decoding: interlaced frames, flagged or not, lose their combs; one frame out for
one in, the same by any way in.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from medsora.data.checking.scan import Scan, scan_source
from medsora.data.phantom import render_clip
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import read_frames, read_last_frames
from tests.support.video_files import encode

FRAMES = 60
FLAGGED = {
    "a.mpg": ("mpeg2video", "yuv420p", {"b": "6M", "flags": "+ildct+ilme", "top": "1", "g": "12", "bf": "2"}),
    "a.mp4": ("libx264", "yuv420p", {"crf": "10", "g": "12", "flags": "+ildct+ilme", "x264-params": "tff=1"}),
    "a.ts": ("libx264", "yuv422p", {"crf": "10", "g": "12", "flags": "+ildct+ilme", "x264-params": "bff=1"}),
}


@pytest.fixture(scope="module")
def moments() -> np.ndarray:
    """A textured scene of 96x128 pixels that shifts by 3 pixels a field, two fields a frame."""
    noise = np.random.default_rng(0).integers(60, 180, (90, 90, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([noise[k * 3 % 200 :, k * 3 % 200 :][:96, :128] for k in range(2 * FRAMES)])


def woven(moments: np.ndarray, *, bottom_first: bool = False) -> np.ndarray:
    """Return frames whose even rows are of one moment and whose odd rows are of the next, or the reverse."""
    frames = moments[0::2].copy()
    later = slice(0, None, 2) if bottom_first else slice(1, None, 2)
    frames[:, later] = moments[1::2][:, later]
    return frames


def scan_of(path: Path) -> Scan:
    return scan_source(Source(path, path.name))


def combs(frame: np.ndarray) -> float:
    """Return how much more neighbouring rows differ than those next but one; below 1 without combs."""
    frame = frame.astype(float)
    return np.abs(np.diff(frame, axis=0)).mean() / np.abs(frame[2:] - frame[:-2]).mean()


@pytest.mark.parametrize("name", FLAGGED)
def test_flagged_frames_lose_their_combs(tmp_path: Path, moments: np.ndarray, name: str) -> None:
    codec, pixel_format, options = FLAGGED[name]
    frames = woven(moments, bottom_first=name == "a.ts")
    path = encode(tmp_path / name, frames, codec, pixel_format, options)
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    in_order = read_frames(path)
    assert len(in_order) == FRAMES
    assert combs(frames[30]) > 1.1
    assert max(combs(frame) for frame in in_order[1:-1]) < 0.8
    scan = scan_of(path)
    assert (scan.applied, scan.frames) == (("deinterlaced",), FRAMES)
    points = [point.frame for point in scan.seek_points]
    assert points or name == "a.mpg"
    for start in (0, 1, 13, 40, *points, *(point - 1 for point in points), FRAMES - 5):
        for interval in (1, 2):
            count = min(5, (FRAMES - start - 1) // interval + 1)
            clip = read_frames(path, start, count, interval, seek_points=scan.seek_points, intact=True)
            assert np.array_equal(clip, in_order[start : start + interval * count : interval]), start
    assert np.array_equal(read_last_frames(path, 4), in_order[-4:])


@pytest.mark.parametrize("bottom_first", [False, True])
def test_frames_that_are_not_flagged_are_found_and_lose_their_combs(
    tmp_path: Path, moments: np.ndarray, bottom_first: bool
) -> None:
    frames = woven(moments, bottom_first=bottom_first)
    path = encode(tmp_path / "a.mp4", frames, options={"crf": "10", "g": "12"})
    scan = scan_of(path)
    order = "bottom" if bottom_first else "top"
    assert scan.interpretation.field_order == order
    assert scan.applied == (f"deinterlaced (not flagged, {order} field first)",)
    in_order = read_frames(path, interpretation=scan.interpretation)
    assert len(in_order) == FRAMES
    assert max(combs(frame) for frame in in_order[1:-1]) < 0.8
    for start in (0, 12, 13, 24, 40, 55):
        clip = read_frames(path, start, 5, seek_points=scan.seek_points, interpretation=scan.interpretation)
        assert np.array_equal(clip, in_order[start : start + 5])
    assert np.array_equal(read_last_frames(path, 4), in_order[-4:])
    for frame, first, second in zip(in_order, moments[0::2], moments[1::2], strict=True):
        to_first, to_second = (np.abs(frame.astype(int) - moment).mean() for moment in (first, second))
        assert to_first < to_second  # it is the first field's moment, whole


def test_only_the_flagged_frames_of_a_mixed_file_are_changed(tmp_path: Path, moments: np.ndarray) -> None:
    codec, pixel_format, options = FLAGGED["a.mpg"]
    parts = [
        encode(tmp_path / "a.mpg", woven(moments)[:24], codec, pixel_format, options),
        encode(tmp_path / "b.mpg", moments[24:48], codec, pixel_format, {"b": "6M", "g": "12"}),
    ]
    path = tmp_path / "both.m2v"
    with path.open("wb") as file, av.open(file, "w", format="mpeg2video") as joined:
        stream = None
        for part in parts:
            with av.open(str(part)) as container:
                stream = stream or joined.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        joined.mux(packet)
    shown = read_frames(path)
    assert scan_of(path).applied == (f"deinterlaced (24 of {len(shown)} frames)",)
    with av.open(str(path)) as container:
        stored = [
            (frame.interlaced_frame, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    for frame, (flagged, pixels) in zip(shown, stored, strict=True):
        assert np.array_equal(frame, pixels) == (not flagged)


def test_whole_frames_are_not_taken_for_interlaced(tmp_path: Path, moments: np.ndarray) -> None:
    assert scan_of(encode(tmp_path / "a.mp4", render_clip(0, 17, 64).video)).applied == ()
    for number, step in enumerate([(1, 0), (2, 0), (0, 2), (3, 1)]):
        shifted = np.stack([np.roll(moments[0], (k * step[0], k * step[1]), (0, 1)) for k in range(40)])
        path = encode(tmp_path / f"shift{number}.mkv", shifted, "ffv1", "bgr0")
        assert scan_of(path).applied == (), step


def test_a_file_without_interlaced_frames_builds_no_filter(
    tmp_path: Path, moments: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mkv", moments[:20], "ffv1", "bgr0")
    scan = scan_of(path)
    monkeypatch.delattr(av.filter, "Graph")
    clip = read_frames(path, 3, 5, seek_points=scan.seek_points, interpretation=scan.interpretation)
    assert np.array_equal(clip, moments[3:8])


def test_no_clip_borders_on_damage(tmp_path: Path, moments: np.ndarray) -> None:
    codec, pixel_format, options = FLAGGED["a.mp4"]
    path = encode(tmp_path / "a.mp4", woven(moments), codec, pixel_format, options)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    scan = scan_of(path)
    assert scan.broken
    assert max(stop - start for start, stop in scan.runs()) >= 5
    in_order = read_frames(path)
    for start, stop in scan.runs():
        for first in (start, start + 1, stop - 4) if stop - start >= 5 else ():
            clip = read_frames(path, first, 4, seek_points=scan.seek_points)
            assert np.array_equal(clip, in_order[first : first + 4])
