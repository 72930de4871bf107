"""A video file as a stream of frames: opened with care, decoded one frame at a time, entered by proven seeks.

A container's own idea of "frame 1200" is not to be trusted: time stamps repeat, indices are stale, decoders
start at frames that need others. So a seek is used only when the frame that it lands on has the time stamp
**and** the checksum which that frame had when the file was decoded from its start (`SeekPoint`); otherwise
decoding begins at an earlier point, in the end at the file's start.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np

MAX_SIDE = 16384  # pixels; a header that claims more is broken, and believing it would cost gigabytes
MAX_PIXELS = 2**25  # 8K; a decoder holds a dozen such pictures at once, which must stay below a gigabyte
SIZE_LIMIT = f"at most {MAX_SIDE} per side and {MAX_PIXELS // 10**6} million in all are read"
STALL_S = 60.0  # opening a file, or reading its next packet, takes no longer, or it is given up
NOT_VIDEOS = {"concat", "dash", "hls", "tty", "image2"}  # what FFmpeg opens but which holds no frames itself


class UnreadableVideo(ValueError):
    """A file or frame does not decode; the message is one sentence that names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}."


class SeekPoint(NamedTuple):
    """A frame at which decoding can start: its number, its time stamp and the checksum of its pixels.

    `aim` is the time stamp to ask the container for: some containers land behind what they are asked for.
    """

    frame: int
    pts: int
    checksum: int
    aim: int


class VideoReader:
    """The first video stream of one file; a context manager.

    Raises `UnreadableVideo` on opening a file that holds no video or whose header cannot be believed.
    `skipped_packets` and `stopped_by` tell afterwards what did not decode. Decoding that takes longer than
    `time_limit` seconds raises `UnreadableVideo` too: no damage can make it go on for ever.
    """

    def __init__(self, path: str | Path, time_limit: float | None = None) -> None:
        self.path = Path(path)
        self.time_limit = time_limit
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.skipped_packets = 0
        self.stopped_by: str | None = None
        try:
            self.container = av.open(
                f"file:{self.path}",
                metadata_errors="replace",
                options={"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)},
                timeout=STALL_S,
            )
        except av.FFmpegError as error:
            raise UnreadableVideo(self.path, why_unopenable(self.path, error)) from error
        try:
            self.stream = self._believable_stream()
        except BaseException:
            self.container.close()
            raise

    def _believable_stream(self) -> av.VideoStream:
        names = set(self.container.format.name.split(","))
        stream = self.container.streams.best("video")
        if names & NOT_VIDEOS or stream is None:
            raise UnreadableVideo(self.path, f"holds no video ({self.container.format.name})")
        if stream.codec_context is None:
            raise UnreadableVideo(self.path, "coded in a way for which there is no decoder here")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width < 1 or height < 1:
            raise UnreadableVideo(self.path, f"its header gives no believable picture size; {SIZE_LIMIT}")
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise UnreadableVideo(
                self.path, f"its header claims frames of {width}x{height} pixels; {SIZE_LIMIT}"
            )
        return stream

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from where the reader stands on, in order of presentation, skipping packets that do not."""
        try:
            for packet in self.container.demux(self.stream):
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise UnreadableVideo(self.path, f"decoding takes longer than {self.time_limit:.0f} s")
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    self.skipped_packets += 1
                    continue
                yield from decoded
        except av.FFmpegError as error:
            self.stopped_by = error.strerror or str(error)

    def frames_from(self, point: SeekPoint) -> Iterator[av.VideoFrame] | None:
        """Seek to `point` and decode from that frame on; None if that very frame is not found there."""
        try:
            self.container.seek(point.aim, stream=self.stream)
        except av.FFmpegError:
            return None
        decoded = self.frames()
        for frame in decoded:
            if frame.pts is not None and frame.pts >= point.pts:
                landed = frame.pts == point.pts and self.checksum(frame) == point.checksum
                return _chain(frame, decoded) if landed else None
        return None

    def pixels(self, frame: av.VideoFrame, pixel_format: str = "rgb24") -> np.ndarray:
        """Return a frame's pixels, by default uint8 (H, W, 3); `UnreadableVideo` if that fails."""
        try:
            return frame.to_ndarray(format=pixel_format)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise UnreadableVideo(self.path, f"a frame cannot be converted to pixels ({error})") from error

    def checksum(self, frame: av.VideoFrame) -> int:
        """Return the CRC-32 of the frame's grey values."""
        return zlib.crc32(self.pixels(frame, "gray").tobytes())


def _chain(first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    yield first
    yield from rest


def why_unopenable(path: Path, error: Exception) -> str:
    """Return the plain reason why `path` does not open as a video."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        return "a link that leads nowhere" if path.is_symlink() else "does not exist"
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    if not head:
        return "empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the video itself; run 'git lfs pull'"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text file, not a video"
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free"):
        return "truncated: the table of its frames, which this kind of file keeps at its end, is missing"
    return f"not a video that can be read ({getattr(error, 'strerror', None) or error})"
