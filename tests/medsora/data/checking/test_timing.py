"""medsora.data.checking.timing, medsora.data.checking.scan: joined and paused recordings, edit lists, changes
of size, variable frame rates: what a player shows is read, no clip crosses a boundary, seeking works.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsora.data.checking.check import CheckReport, check_folder
from medsora.data.checking.timing import Timing, read_timing
from medsora.data.reading.video_io import read_frames
from tests.support.video_files import copy_from, encode, moving_frames


def check(folder: Path, tmp_path: Path, **options: int) -> CheckReport:
    return check_folder(folder, cache_path=tmp_path / "c.json", **{"frames": 5, "interval": 1, **options})


def test_even_time_stamps_tell_the_frame_rate() -> None:
    assert read_timing([k / 25 for k in range(40)], 25.0) == Timing(25.0)
    assert read_timing([round(k / 59.94, 3) for k in range(100)], 59.94) == Timing(
        59.94
    )  # as Matroska rounds
    assert read_timing([k / 25 for k in range(40)], 90.0).fps == pytest.approx(25)  # a wrong header
    for few in ([], [0.0], [1.0, 1.0], [0.0, None, 0.2]):
        assert read_timing(few, 7.0) == Timing(7.0)


def test_pauses_and_new_beginnings_are_distinguished_from_uneven_steps() -> None:
    even = [k / 25 for k in range(30)]
    later = [even[-1] + 3600 + t for t in even]
    assert read_timing([*even, *later], 0.02) == Timing(pytest.approx(25), pauses=(30,))
    assert read_timing([*even, *even, *even], 25.0) == Timing(25.0, jumps=(30, 60))
    swapped = [*even[:10], even[11], even[10], *even[12:]]  # as decoders without reordering give them
    assert (read_timing(swapped, 25.0).jumps, read_timing(swapped, 25.0).pauses) == ((), ())
    dropped = [t for k, t in enumerate(even) if k not in (10, 11)]
    assert read_timing(dropped, 25.0).pauses == ()


def test_uneven_steps_keep_the_frames_times() -> None:
    seconds = [k / 25 for k in range(30)] + [29 / 25 + k for k in range(1, 31)]
    timing = read_timing(seconds, 25.0)
    assert (timing.jumps, timing.pauses) == ((), ())
    assert timing.times_ms == tuple(round(1000 * t) for t in seconds)
    assert timing.fps == pytest.approx(59 / seconds[-1])


def transport_stream(path: Path, frames: np.ndarray) -> bytes:
    return encode(path, frames, "mpeg2video", options={"g": "12", "bf": "2", "b": "3M"}).read_bytes()


@pytest.mark.parametrize("ending", ["ts", "mpg"])
def test_joined_recordings_are_sought_and_parted(tmp_path: Path, ending: str) -> None:
    frames = moving_frames(180)
    one = transport_stream(tmp_path / f"one.{ending}", frames[:90])
    other = transport_stream(tmp_path / f"other.{ending}", frames[90:])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"joined.{ending}").write_bytes(one + other + one)
    (video,) = check(tmp_path / "data", tmp_path).usable
    path, scan = video.source.path, video.scan
    whole = read_frames(path)
    assert len(whole) == scan.frames
    first, second = scan.breaks
    assert scan.parted[-1] == f"2 jumps of the time stamps (at frames {first}, {second})"
    assert (abs(first - 90), abs(second - 180)) < (4, 8)  # a join costs frames that need lost ones
    for begin, stop in scan.runs():
        assert sum(begin <= point.frame < stop for point in scan.seek_points) >= 5
        for start in (begin + 30, stop - 20):
            assert np.array_equal(
                read_frames(path, start, 9, seek_points=scan.seek_points), whole[start : start + 9]
            )
    assert all(w.latest + 5 <= first for w in video.windows if w.start < first)
    assert not any("seeking" in remark for remark in scan.remarks)


def test_another_size_parts_a_recording(tmp_path: Path) -> None:
    one = transport_stream(tmp_path / "one.ts", moving_frames(40))
    other = transport_stream(tmp_path / "other.ts", moving_frames(40, 96, 128))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "joined.ts").write_bytes(one + other)
    (video,) = check(tmp_path / "data", tmp_path).usable
    assert any("change of size" in words for words in video.scan.parted)
    clips = [read_frames(video.source.path, w.latest, 5) for w in video.windows]  # raises where sizes differ
    assert {clip.shape[1:] for clip in clips} == {(48, 64, 3), (96, 128, 3)}


def test_no_clip_crosses_a_pause(tmp_path: Path) -> None:
    times = [k * 40 for k in range(30)] + [3_600_000 + k * 40 for k in range(30)]
    encode(tmp_path / "data" / "a.mkv", moving_frames(60), times=times)
    report = check(tmp_path / "data", tmp_path, clip_stride=1)
    (video,) = report.usable
    assert video.scan.fps == pytest.approx(25, rel=0.01)
    assert video.scan.runs() == [(0, 30), (30, 60)]
    assert video.shots_words == "1 pause (at frame 30)"
    assert all(w.start // 30 == (w.latest + 4) // 30 for w in video.windows)
    assert video.uneven_words is None


def test_a_variable_frame_rate_is_reported(tmp_path: Path) -> None:
    times = [k * 40 for k in range(30)] + [1200 + k * 1000 for k in range(30)]
    encode(tmp_path / "data" / "a.mp4", moving_frames(60), times=times)
    for _ in range(2):  # decoded, and recalled
        report = check(tmp_path / "data", tmp_path)
        assert report.usable[0].uneven_words == "variable frame rate: frames are 0.04 to 1 s apart"
        assert any("unevenly spaced in 1 source," in line for line in report.complaints())


@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path: Path, ending: str) -> None:
    whole = encode(tmp_path / f"whole.{ending}", moving_frames(120), options={"g": "60", "bf": "2"})
    shown = read_frames(whole)[20:]
    (tmp_path / "data").mkdir()
    cut = tmp_path / "data" / f"cut.{ending}"
    copy_from(whole, cut, frames=20)
    (video,) = check(tmp_path / "data", tmp_path).usable
    assert (video.scan.frames, video.scan.remarks, video.scan.breaks) == (100, (), ())
    assert any(words.startswith("20 frames that the file hides") for words in video.scan.applied)
    assert np.array_equal(read_frames(cut), shown)
    for start in (0, 30, 60, 90):
        clip = read_frames(cut, start, 5, seek_points=video.scan.seek_points)
        assert np.array_equal(clip, shown[start : start + 5])
