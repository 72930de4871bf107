"""medsora.data.reading.decoding: whatever error a demuxer or decoder raises ends that file only.

In the check of a folder (medsora.data.checking.scan) and in training alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition

from medsora.data.checking.check import check_folder
from medsora.data.checking.scan import CHECK_FAILS, Scan
from medsora.data.reading import decoding
from medsora.data.reading.decoding import UnreadableVideo, VideoReader
from medsora.data.reading.video_io import probe, read_frames, read_last_frames
from tests.support.clip_dataset import clip_dataset
from tests.support.video_files import encode, late_stream, moving_frames

ERRORS = (IndexError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError)


def test_a_stream_that_appears_late_ends_that_file_only(tmp_path: Path) -> None:
    late = late_stream(tmp_path / "late.ts", moving_frames(60), from_packet=30)
    encode(tmp_path / "whole.ts", moving_frames(60), "mpeg2video", "yuv420p")
    with av.open(str(late)) as container, pytest.raises(IndexError):
        list(container.demux(container.streams.best("video")))
    report = check_folder(tmp_path, frames=9, interval=1, cache_path=tmp_path / "check.json")
    names = {video.source.name: video for video in report.usable}
    assert names["whole.ts"].scan.remarks == ()
    assert "reading stops after frame" in "; ".join(names["late.ts"].scan.remarks)
    with pytest.raises(UnreadableVideo, match="does not exist or does not decode"):
        read_frames(late, 50, 4)


class Breaking:
    """Stands for an object of PyAV; one of its methods raises after some calls."""

    def __init__(self, inner: Any, name: str, error: type[Exception], calls: int) -> None:
        self.__dict__.update(inner=inner, name=name, error=error, calls=calls)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name != self.name:
            return found
        if name == "demux":
            return self._demux
        raise self.error("of damage")

    def _demux(self, stream: Any) -> Any:
        for number, packet in enumerate(self.inner.demux(stream)):
            if number == self.calls:
                raise self.error("of damage")
            yield packet


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["open", "format", "demux", "seek"])
def test_errors_of_any_kind(
    place: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken.mp4", "whole.mp4"):
        encode(tmp_path / name, moving_frames(40), "libx264", "yuv420p", {"g": "8", "bf": "0"})
    opened = av.open

    def open_broken(path: str, *arguments: Any, **options: Any) -> Any:
        if not path.endswith("broken.mp4"):
            return opened(path, *arguments, **options)
        if place == "open":
            raise error("of damage")
        return Breaking(opened(path, *arguments, **options), place, error, calls=30)

    monkeypatch.setattr(decoding.av, "open", open_broken)
    report = check_folder(tmp_path, frames=9, interval=1, cache_path=tmp_path / "check.json")
    found = {video.source.name: video.scan for video in report.reports}
    assert found["whole.mp4"].frames == 40
    broken = found["broken.mp4"]
    assert not (broken.problem or "").startswith(CHECK_FAILS)
    assert broken.frames == {"open": 0, "format": 0, "demux": 30, "seek": 40}[place]
    cache = tmp_path / "clips.json"
    clips = clip_dataset(tmp_path, check_cache=cache, frames=8, interval=1, size=32, images=0, holdout=0)
    for index in range(len(clips)):
        assert clips[index]["video"].shape == (9, 3, 32, 32)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("method", ["pixels", "deep_pixels", "checksum", "sampled"])
def test_frames_that_do_not_convert(
    method: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "video.mp4", moving_frames(4), "libx264", "yuv420p")
    with VideoReader(path) as reader:
        frame = next(reader.frames())
        call: Callable[..., Any] = getattr(reader, method)
        broken = Breaking(frame, "to_ndarray", error, calls=0)
        with pytest.raises(UnreadableVideo, match="cannot be converted to pixels"):
            call(broken, 8) if method == "sampled" else call(broken)


@pytest.mark.parametrize("place", ["open", "demux"])
def test_a_disk_that_does_not_answer_is_no_damage(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "videos" / "a.mp4", moving_frames(40), "libx264", "yuv420p", {"g": "8"})
    opened = av.open

    def open_stalled(url: str, **options: Any) -> Any:
        stalled = av.ExitError(1, "Immediate exit requested")
        if place == "open":
            raise stalled
        return Breaking(opened(url, **options), place, lambda words: stalled, calls=30)

    def scan() -> Scan:
        (video,) = check_folder(path.parent, frames=9, interval=1, cache_path=tmp_path / "check.json").reports
        return video.scan

    with monkeypatch.context() as patched:
        patched.setattr(decoding.av, "open", open_stalled)
        assert scan().problem == "cannot be read: no answer for 60 s"
        with pytest.raises(UnreadableVideo, match="no answer for 60 s"):
            read_frames(path, 30, 4)
    assert (scan().problem, scan().frames) == (None, 40)


@pytest.mark.parametrize("cover", [False, True])
def test_further_videos_in_a_file_are_named_and_covers_are_not(tmp_path: Path, cover: bool) -> None:
    """Such as those of a room's camera beside the endoscope's."""
    path = tmp_path / ("a.mp4" if cover else "a.mkv")
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in ("mpeg4", "mjpeg" if cover else "mpeg4")]
        for stream, side in zip(streams, (64, 32), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p" if stream.name == "mjpeg" else "yuv420p"
        if cover:
            streams[1].disposition = Disposition.attached_pic
        for number in range(12):
            for stream, side in zip(streams[: 1 if cover and number else 2], (64, 32), strict=False):
                frame = av.VideoFrame.from_ndarray(moving_frames(12, side, side)[number], format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    with VideoReader(path) as reader:
        assert list(reader.applied) == ([] if cover else ["1 of 2 video streams read"])
        assert len(list(reader.frames())) == 12
    assert read_frames(path).shape == (12, 64, 64, 3)


def test_a_pipe_is_refused_wherever_a_video_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    os.mkfifo(path)
    for read in (probe, read_frames, lambda path: read_last_frames(path, 1)):
        with pytest.raises(UnreadableVideo, match="not a regular file"):
            read(path)
