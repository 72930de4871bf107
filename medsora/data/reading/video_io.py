"""Frames in and out of files: what a video is (`probe`), a span of it (`read_frames`), writing one.

A video is a file in any container that PyAV reads, or a folder of pictures. Frames are RGB, uint8
(F, H, W, 3), counted from 0 in order of presentation.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from medsora.data.reading.decoding import AS_FLAGGED, Interpretation, SeekPoint, UnreadableVideo, VideoReader
from medsora.data.reading.depth import is_deep, to_eight_bits
from medsora.data.reading.frame_folder import IMAGE_SUFFIXES, list_frames, read_image, read_picture, white_of
from medsora.data.reading.interlacing import FieldOrderDetector
from medsora.data.reading.margins import NO_MARGINS, Margins, crop
from medsora.data.reading.resize import resize_and_crop
from medsora.runtime.files import written_beside

WRITING_THREADS = 4  # H.264's bytes depend on their number, which must not depend on the machine


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header contains; nothing is decoded, so `header_frames` may be wrong or unknown.

    `width` and `height` are those of the frames as they are stored, turned and stretched to square pixels or
    not.
    """

    container: str
    codec: str
    width: int
    height: int
    fps: float | None
    header_frames: int | None
    metadata: dict[str, str] = field(default_factory=dict)


def probe(path: str | Path) -> VideoInfo:
    """Return what the header of a video file, or the first picture of a frame folder, contains.

    The metadata's keys are lower case. Raises `UnreadableVideo` (a `ValueError`) with one sentence.
    """
    path = Path(path)
    if path.is_dir():
        pictures = list_frames(path)
        if not pictures:
            raise UnreadableVideo(path, "a folder without pictures")
        height, width = read_image(pictures[0]).shape[:2]
        kind = pictures[0].suffix.lstrip(".").lower()
        return VideoInfo("frames", kind, width, height, None, len(pictures))
    with VideoReader(path) as reader:
        return reader_info(reader)


def reader_info(reader: VideoReader) -> VideoInfo:
    """Return what the header of an open video file contains."""
    stream, context = reader.stream, reader.stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    tags = {**reader.container.metadata, **stream.metadata}
    return VideoInfo(
        container=reader.container.format.name.split(",")[0],
        codec=context.name,
        width=context.width,
        height=context.height,
        fps=float(rate) if rate else None,
        header_frames=stream.frames or None,
        metadata={key.lower(): value for key, value in tags.items()},
    )


def read_frames(
    path: str | Path,
    start: int = 0,
    count: int | None = None,
    interval: int = 1,
    size: int | tuple[int, int] | None = None,
    *,
    numbers: Sequence[int] | None = None,
    seek_points: Sequence[SeekPoint] = (),
    margins: Margins = NO_MARGINS,
    interpretation: Interpretation = AS_FLAGGED,
    pictures: Sequence[str] | None = None,
    time_limit: float | None = None,
    resize: Callable[[np.ndarray, int | tuple[int, int]], np.ndarray] = resize_and_crop,
) -> np.ndarray:
    """Return frames start, start + interval, ... as uint8 (count, H, W, 3); all if `count` is None.

    `numbers`, of frames in rising order, overrule `start`, `count` and `interval`.
    `margins` (top, bottom, left, right; parts of height and width) are cut off first. With `size`, one number
    or (H, W), `resize` brings what is left of each frame to it, by default scaled to cover it and cropped in
    the middle. Frames are decoded one after another and only those requested are kept. With `seek_points` (of
    `medsora.data.checking.scan.scan_source`) decoding begins at the last usable one at or before `start`,
    without them at the file's start; the frames are the same either way. Frames are upright, of square pixels
    and deinterlaced where they are flagged interlaced; `interpretation`, also from the scan, is what the
    file does not. `pictures` are the names of a folder's frames in order (default: `list_frames`).

    Raises `UnreadableVideo` (a `ValueError`) if a frame does not exist or does not decode, or if it takes
    longer than `time_limit` seconds.
    """
    if start < 0 or interval < 1 or (count is not None and count < 1):
        raise ValueError(
            f"cannot read {count} frames from {start} on at interval {interval}: start must be at least 0, "
            "count and interval at least 1."
        )
    path = Path(path)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    if numbers is None:
        wanted = range(start, sys.maxsize if count is None else start + (count - 1) * interval + 1, interval)
        stop = None if count is None else wanted.stop
    else:
        start, stop, count, wanted = numbers[0], numbers[-1] + 1, len(numbers), frozenset(numbers)
    if not path.is_dir():
        chosen = _file_frames(path, start, stop, wanted, seek_points, interpretation, time_limit)
    elif numbers is None:
        chosen = _folder_frames(path, start, stop, interval, interpretation.white, pictures)
    else:
        every = enumerate(_folder_frames(path, start, stop, 1, interpretation.white, pictures), start)
        chosen = (frame for number, frame in every if number in wanted)
    kept = []
    for frame in chosen:
        frame = crop(frame, margins)
        kept.append(frame if size is None else resize(frame, size))
        if deadline is not None and time.monotonic() > deadline:
            raise UnreadableVideo(path, "decoding takes longer than one clip may")
    if not kept or (count is not None and len(kept) < count):
        missing = (numbers or wanted)[len(kept)]
        raise UnreadableVideo(path, f"frame {missing} does not exist or does not decode")
    if any(frame.shape != kept[0].shape for frame in kept):
        raise UnreadableVideo(path, "its frames differ in size; read it with a size")
    return np.stack(kept)


def read_last_frames(path: str | Path, count: int) -> np.ndarray:
    """Return the last `count` frames, or all if there are fewer: uint8 (G, H, W, 3).

    A picture is a video of one frame. Decodes everything, keeps `count` frames. Raises `UnreadableVideo` (a
    `ValueError`) or `OSError` with one sentence.
    """
    path = Path(path)
    if path.is_dir():
        frames = list(_folder_frames(path, max(0, len(list_frames(path)) - count), None, 1))
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        frames = [read_image(path)]
    else:
        frames = _last_file_frames(path, count)
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise UnreadableVideo(path, "no frames of one size could be read from it")
    return np.stack(frames)


def _last_file_frames(path: Path, count: int) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        detector = FieldOrderDetector(reader.stream.codec_context.name)
        decoded: deque[av.VideoFrame] = deque(maxlen=count + 1)  # and a neighbour for the first
        total = 0
        for frame in reader.frames():
            detector.add(frame)
            decoded.append(frame)
            total += 1
        reader.interpretation = Interpretation(detector.field_order())
        sequence = _Neighbours(iter(decoded))
        pixels = [_shown(reader, frame, sequence) for frame in sequence]
    return pixels[-min(count, total) :]


def _folder_frames(
    folder: Path,
    start: int,
    stop: int | None,
    interval: int,
    white: float | None = None,
    pictures: Sequence[str] | None = None,
) -> Iterator[np.ndarray]:
    changed_ns = folder.stat().st_mtime_ns
    listed = _listing(folder, changed_ns) if pictures is None else pictures
    for picture in listed[start:stop:interval]:
        values = read_picture(folder / picture).values
        yield to_eight_bits(values, white or _white(folder, changed_ns)) if is_deep(values) else values


@lru_cache(maxsize=64)
def _listing(folder: Path, changed_ns: int) -> list[str]:
    return [path.name for path in list_frames(folder)]


@lru_cache(maxsize=64)
def _white(folder: Path, changed_ns: int) -> float:
    return white_of(list_frames(folder))


class _Neighbours:
    """Frames one by one, with the one before; the one behind is decoded ahead only if needed."""

    def __init__(self, frames: Iterator[av.VideoFrame]) -> None:
        self._frames = frames
        self._ahead: list[av.VideoFrame] = []
        self._current: av.VideoFrame | None = None
        self.previous: av.VideoFrame | None = None

    def __iter__(self) -> Iterator[av.VideoFrame]:
        while (frame := self._ahead.pop() if self._ahead else next(self._frames, None)) is not None:
            self.previous, self._current = self._current, frame
            yield frame

    def following(self) -> av.VideoFrame | None:
        """Return the frame behind the current one, None at the end."""
        if not self._ahead and (frame := next(self._frames, None)) is not None:
            self._ahead.append(frame)
        return self._ahead[0] if self._ahead else None


def _shown(reader: VideoReader, frame: av.VideoFrame, neighbours: _Neighbours) -> np.ndarray:
    if reader.is_interlaced(frame):
        frame = reader.deinterlaced(neighbours.previous, frame, neighbours.following())
    return reader.pixels(frame)


def _file_frames(
    path: Path,
    start: int,
    stop: int | None,
    wanted: Container[int],
    seek_points: Sequence[SeekPoint],
    interpretation: Interpretation,
    time_limit: float | None,
) -> Iterator[np.ndarray]:
    before = bisect_right(seek_points, start, key=lambda point: point.frame)
    entries = [*reversed(seek_points[max(0, before - 2) : before]), None]  # None: the file's start
    for point in entries:
        with VideoReader(path, time_limit, interpretation) as reader:
            decoded = reader.frames() if point is None else reader.frames_from(point)
            if decoded is None:
                continue
            neighbours = _Neighbours(decoded)
            for number, frame in enumerate(neighbours, start=point.frame if point else 0):
                if number == start and point and neighbours.previous is None and reader.is_interlaced(frame):
                    break  # the frame before it is needed: enter earlier
                if number in wanted:
                    yield _shown(reader, frame, neighbours)
                if stop is not None and number + 1 >= stop:
                    return
            else:
                return


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float | Fraction,
    *,
    lossless: bool = False,
    metadata: dict[str, object] | None = None,
) -> None:
    """Write uint8 (F, H, W, 3) frames as a video, beside its place first and then renamed into it.

    By default H.264 in yuv420p at high quality, which every browser plays (.mp4, .mkv or .mov; odd sides gain
    one repeated row or column). `lossless` codes FFV1 in RGB instead, which reads back bit for bit (.mkv).
    Missing parent folders are made; `metadata` becomes the container's tags, which `probe` returns.

    Raises `ValueError` if frames or file ending do not fit, `OSError` if the file cannot be written.
    """
    path = Path(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"a video is uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}.")
    endings = (".mkv",) if lossless else (".mp4", ".mkv", ".mov")
    if path.suffix.lower() not in endings:
        kind = "a lossless" if lossless else "an H.264"
        raise ValueError(f"{path} must end in {' or '.join(endings)} for {kind} video.")
    with (
        written_beside(path) as beside,
        av.open(f"file:{beside}", "w", options=_container_options(path)) as container,
    ):
        container.metadata.update({key: str(value) for key, value in (metadata or {}).items()})
        _encode(container, frames, Fraction(fps).limit_denominator(100_000), lossless)


def _container_options(path: Path) -> dict[str, str]:
    # faststart: the frame table comes first, so browsers play at once; tags: mp4 drops unknown names without
    return {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart+use_metadata_tags"}


def _encode(
    container: av.container.OutputContainer, frames: np.ndarray, rate: Fraction, lossless: bool
) -> None:
    if not lossless:
        frames = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], "edge")
    stream = container.add_stream("ffv1" if lossless else "libx264", rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "bgr0" if lossless else "yuv420p"
    stream.options = {"level": "3", "g": "1"} if lossless else {"crf": "16", "preset": "medium"}
    stream.codec_context.thread_count = WRITING_THREADS
    if not lossless:
        stream.codec_context.color_range = ColorRange.MPEG  # untagged, players guess by picture size
        stream.codec_context.colorspace = Colorspace.ITU601
    for frame in frames:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        container.mux(stream.encode(picture))
    container.mux(stream.encode())
