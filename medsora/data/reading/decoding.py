"""A video file as a stream of frames: opened safely, decoded frame by frame, entered by verified seeks.

Frames become pixels as every player shows them: upright, with square pixels, in the colours that the file is
tagged with. An ordinary file, which needs none of this, is only converted to RGB.

A container's own idea of "frame 1200" is not to be trusted: time stamps repeat, indices are stale, decoders
start at frames that need others. So a seek is used only when the frame that it lands on has the time stamp
**and** the checksum which that frame had when the file was decoded from its start (`SeekPoint`); otherwise
decoding begins at an earlier point, in the end at the file's start.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from medsora.data.reading.checksums import MANIFEST, differs_from_manifest, has_damaged_slices
from medsora.data.reading.depth import to_eight_bits
from medsora.data.reading.interlacing import Deinterlacer
from medsora.data.reading.memory import (
    MAX_DECODING_BYTES,
    decoding_bytes_per_pixel,
    decoding_memory,
    granted_bytes,
)
from medsora.data.reading.orientation import UPRIGHT, Orientation, from_display_matrix

MAX_SIDE = 16384  # pixels; a header that claims more is broken and would cost gigabytes
MAX_PIXELS = 2**25  # 8K
ONE_THREAD_PIXELS = 2**17  # below, starting threads takes longer than the conversion
SIZE_LIMIT = f"at most {MAX_SIDE} per side and {MAX_PIXELS // 10**6} million in all are read"
STALL_S = 60.0  # time limit for opening a file and for reading its next packet
NOT_VIDEOS = {"concat", "dash", "hls", "tty"}  # FFmpeg's formats without frames of their own
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails  # pictures beside a video
DICOM_SUFFIXES = frozenset([".dcm", ".dicom"])
DICOM = (
    "a DICOM file, which is not read; convert it to pictures or a video first, such as with DCMTK: "
    "dcm2pnm --all-frames --write-png FILE FOLDER/frame"
)

HD_ROWS = 720  # untagged frames of at least this height are BT.709, smaller ones BT.601, as in players
UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
HDR = {ColorTrc.SMPTE2084.value: "PQ", ColorTrc.ARIB_STD_B67.value: "HLG"}
ALMOST_SQUARE = Fraction(1, 100)  # tolerance of the pixel aspect ratio, which encoders round
MAX_PIXEL_ASPECT = 4
LIMITED_RANGE = ((np.arange(256) - 16) * (255 / 219)).clip(0, 255).round().astype(np.uint8)


class UnreadableVideo(ValueError):
    """A file or frame does not decode; the message is one sentence that names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}."

    @property
    def read_failed(self) -> bool:
        """Whether the disk or the process failed rather than the content, so that another try may succeed."""
        return CANNOT_BE_READ in self.reason


class SeekPoint(NamedTuple):
    """A frame at which decoding can start: its number, its time stamp and the checksum of its pixels.

    `aim` is the time stamp to seek to: some containers land behind the requested one.
    With `by_byte` it is a position in the file: where time stamps repeat, seeking by them is ambiguous.
    """

    frame: int
    pts: int
    checksum: int
    aim: int
    by_byte: bool = False


class Interpretation(NamedTuple):
    """Reading options of a source that only a pass over all of it can find.

    `field_order` ("top" or "bottom" field first) is that of interlaced frames which are not flagged as such,
    `white` the value of white where channels have more than 8 bits (`medsora.data.reading.depth`).
    """

    field_order: str | None = None
    white: float | None = None


AS_FLAGGED = Interpretation()
CHANGED = (
    f"is damaged or was changed: it does not match its checksum in {MANIFEST}; delete it and run the "
    "sampling command again, or move a video that you changed on purpose into another folder"
)
HEAD_BYTES = 4096  # read of a file that does not open
MATROSKA = b"\x1a\x45\xdf\xa3"
CANNOT_BE_READ = "cannot be read"
TAKES_LONGER = "decoding takes longer than"  # a busy or suspended machine exceeds limits, too
FAILED_READS = {  # errors of the disk, its server or the process, which FFmpeg raises for no file's content
    *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ENOKEY, errno.EKEYEXPIRED),
    *(errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO, errno.ENOLINK),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EPROTO),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
}


def _naming_the_file(method: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Name the file in errors that PyAV raises in a method of `VideoReader`; damage may cause any error."""

    @wraps(method)
    def guarded(self: VideoReader, *arguments: Any) -> np.ndarray:
        try:
            return method(self, *arguments)
        except UnreadableVideo:
            raise
        except Exception as error:
            raise UnreadableVideo(
                self.path, f"a frame cannot be converted to pixels ({_words(error)})"
            ) from error

    return guarded


class VideoReader:
    """The best video stream of one file, as players choose it; a context manager.

    Raises `UnreadableVideo` on opening a file that holds no video or whose header cannot be believed, or that
    takes more memory to decode than there is for it (`medsora.data.reading.memory`); where others have taken
    that, opening waits. Whatever error damage leads PyAV to ends the reading of this file only.
    A read that fails raises it too, wherever in the file: what follows may be intact.
    `skipped_packets` and `stopped_by` are what did not decode, `hidden_packets` how many an edit
    list hides from players, `key_positions` from which byte on the key frame of each time stamp lies.
    Decoding that takes longer than `time_limit` seconds raises `UnreadableVideo` too: no damage can make it
    never end. `applied` holds in words, once each, what `pixels` does to frames beyond converting them.
    """

    def __init__(
        self, path: str | Path, time_limit: float | None = None, interpretation: Interpretation = AS_FLAGGED
    ) -> None:
        self.path = Path(path)
        self.time_limit = time_limit
        self.interpretation = interpretation
        self.applied: dict[str, None] = {}
        self._orientation: Orientation | None = None  # until a frame is decoded
        self._deinterlacer = Deinterlacer()
        self._sampler = VideoReformatter()  # keeps what it prepared for frames of one kind
        self.skipped_packets = self.hidden_packets = 0
        self.key_positions: dict[int, int] = {}
        self.stopped_by: str | None = None
        if is_dicom(self.path):
            raise UnreadableVideo(self.path, DICOM)
        if differs_from_manifest(self.path):
            raise UnreadableVideo(self.path, CHANGED)
        try:
            if self.path.exists() and not self.path.is_file():  # opening a pipe may never end
                raise UnreadableVideo(self.path, "not a regular file")
            self.container = av.open(
                f"file:{self.path}",
                metadata_errors="replace",
                options={"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)},
                timeout=STALL_S,
            )
            with ExitStack() as on_error:
                on_error.callback(self.container.close)
                self.stream = self._believable_stream()
                context = self.stream.codec_context
                self._has_checksums = context.name == "ffv1" and bool(context.extradata)  # from version 3 on
                self._lost = False  # a damaged packet, on which the next ones up to a key frame depend
                self._pixel_aspect = self._believable_pixel_aspect()
                self._memory = decoding_memory(self._bounded_bytes())
                self._memory.__enter__()
                on_error.pop_all()
        except UnreadableVideo:
            raise
        except Exception as error:
            raise UnreadableVideo(self.path, _why_unopenable(self.path, error)) from error
        self.deadline = None if time_limit is None else time.monotonic() + time_limit

    def _believable_stream(self) -> av.VideoStream:
        names = set(self.container.format.name.split(","))
        stream = self.container.streams.best("video")
        if "image2" in names:  # FFmpeg trusts the ending where the content leaves a doubt
            suffix = self.path.suffix
            reason = f"taken for a picture by its ending, {suffix}; rename it as the kind of video that it is"
            raise UnreadableVideo(self.path, reason)
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
        streams = [each for each in self.container.streams.video if not each.disposition & COVERS]
        if len(streams) > 1:
            self.applied[f"1 of {len(streams)} video streams read"] = None
        return stream

    def _bounded_bytes(self) -> int:
        """Return what decoding may take, and keep the decoder from pictures that would take more."""
        context = self.stream.codec_context
        width, height, of_a_pixel = context.width, context.height, decoding_bytes_per_pixel(context)
        needed = round(width * height * of_a_pixel)
        if needed > MAX_DECODING_BYTES:
            raise UnreadableVideo(
                self.path,
                f"its header requires {needed // 2**20} MiB to decode frames of {width}x{height} pixels, "
                f"more than the limit of {MAX_DECODING_BYTES // 2**20} MiB; re-encode it with smaller "
                "frames or fewer reference frames",
            )
        granted = min(MAX_PIXELS, round(granted_bytes(needed) / of_a_pixel))
        padded = -(-width // 64) * 64 * (-(-height // 64) * 64)  # FFmpeg compares whole blocks with the limit
        context.options = {"max_pixels": str(max(granted, padded))}
        return needed

    def _believable_pixel_aspect(self) -> Fraction:
        """Return how much wider than high the stored pixels are to be shown, 1 if nearly as wide."""
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        if aspect <= 0 or abs(aspect - 1) <= ALMOST_SQUARE:
            return Fraction(1)
        width, height = self.stream.codec_context.width * aspect, self.stream.codec_context.height
        believable = Fraction(1, MAX_PIXEL_ASPECT) <= aspect <= MAX_PIXEL_ASPECT
        if not believable or width > MAX_SIDE or width * height > MAX_PIXELS:
            raise UnreadableVideo(
                self.path,
                f"its header claims pixels {aspect.numerator}/{aspect.denominator} times as wide as high",
            )
        self.applied[f"pixels of {aspect.numerator}:{aspect.denominator} made square"] = None
        return aspect

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()
        self._memory.__exit__(None, None, None)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from where the reader stands on, in order of presentation, skipping packets that do not."""
        position = None  # the last one known: packets may share it with those before them
        for packet in self._packets():
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise UnreadableVideo(self.path, f"{TAKES_LONGER} {self.time_limit:.0f} s")
            self.hidden_packets += packet.is_discard
            position = position if packet.pos is None else packet.pos
            if packet.is_keyframe and packet.pts is not None and position is not None:
                self.key_positions[packet.pts] = position
            try:
                if self._has_checksums and packet.size:
                    lost = self._lost and not packet.is_keyframe
                    self._lost = lost or has_damaged_slices(bytes(packet))
                    if self._lost:
                        raise ValueError("FFmpeg would decode it all the same")
                decoded = packet.decode()
            except Exception:
                self.skipped_packets += 1
                continue
            yield from decoded

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except Exception as error:  # an IndexError, for example, where a stream appears late
            self._raise_failed_read(error)
            self.stopped_by = _words(error)

    def _raise_failed_read(self, error: Exception) -> None:
        if reason := failed_read(error):
            raise UnreadableVideo(self.path, reason) from error

    def frames_from(self, point: SeekPoint) -> Iterator[av.VideoFrame] | None:
        """Seek to `point` and decode from that frame on; None if that very frame is not found there."""
        try:
            if point.by_byte:
                self.container.seek(point.aim, unsupported_byte_offset=True)
            else:
                self.container.seek(point.aim, stream=self.stream)
        except Exception as error:
            self._raise_failed_read(error)
            return None
        decoded = self.frames()
        for frame in decoded:
            if frame.pts is not None and frame.pts >= point.pts:
                landed = frame.pts == point.pts and self.checksum(frame) == point.checksum
                return chain([frame], decoded) if landed else None
        return None

    @_naming_the_file
    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as it is to be shown: uint8 (H, W, 3), upright, of square pixels.

        Raises `UnreadableVideo` if it cannot be converted, or its colours or orientation cannot be followed.
        """
        if self._orientation is None:
            self._orientation = self._read_orientation(frame)
        options: dict[str, Any] = {}
        if self._pixel_aspect != 1:
            options = {"width": self._shown_width(frame.width), "interpolation": Interpolation.BICUBIC}
        if frame.height >= HD_ROWS and frame.colorspace == UNTAGGED and _has_chroma(frame):
            options["src_colorspace"] = Colorspace.ITU709
            self.applied["colours read as BT.709"] = None
        if frame.color_trc in HDR:
            raise UnreadableVideo(
                self.path,
                f"high dynamic range ({HDR[frame.color_trc]}), which is not read; convert it to standard "
                "range first, such as with ffmpeg's filters zscale and tonemap",
            )
        if self.interpretation.white is not None and has_16_bits(frame):
            image = to_eight_bits(self._converted(frame, "rgb48le", options), self.interpretation.white)
        elif frame.color_range == ColorRange.MPEG and frame.format.name.startswith("gray"):
            grey = LIMITED_RANGE[self._converted(frame, "gray", options)]  # swscale takes it for full range
            image = np.repeat(grey[..., None], 3, axis=-1)
        else:
            image = self._converted(frame, "rgb24", options)
        return self._orientation.upright(image)

    @_naming_the_file
    def deep_pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame's values as they are stored, in 16 bits: uint16 (h, w, 3)."""
        return self._converted(frame, "rgb48le", {})

    @_naming_the_file
    def sampled(self, frame: av.VideoFrame, side: int) -> np.ndarray:
        """Return `side` x `side` pixels picked evenly from a frame as it is stored: uint8 (side, side, 3).

        Cheap at any size. Raises `UnreadableVideo` if the frame cannot be converted.
        """
        white = self.interpretation.white if has_16_bits(frame) else None
        pixel_format = "rgb24" if white is None else "rgb48le"
        small = self._sampler.reformat(
            frame, side, side, pixel_format, interpolation=Interpolation.POINT, threads=1
        ).to_ndarray()
        return small if white is None else to_eight_bits(small, white)

    def is_interlaced(self, frame: av.VideoFrame) -> bool:
        """Return whether `frame` is woven of two fields: flagged, or known by the interpretation."""
        return frame.interlaced_frame or self.interpretation.field_order is not None

    def deinterlaced(
        self, previous: av.VideoFrame | None, frame: av.VideoFrame, following: av.VideoFrame | None
    ) -> av.VideoFrame:
        """Return an interlaced frame without combs, by its neighbours. Raises `UnreadableVideo`."""
        field_order = None if frame.interlaced_frame else self.interpretation.field_order
        try:
            return self._deinterlacer(previous, frame, following, field_order)
        except Exception as error:
            raise UnreadableVideo(self.path, f"a frame cannot be deinterlaced ({_words(error)})") from error

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height in which stored frames of this size are shown."""
        shown = self._shown_width(width), height
        return shown[::-1] if self._orientation is not None and self._orientation.transpose else shown

    def _shown_width(self, width: int) -> int:
        """Return the width in square pixels of stored frames of this width."""
        return max(1, round(width * self._pixel_aspect))

    @_naming_the_file
    def checksum(self, frame: av.VideoFrame) -> int:
        """Return the CRC-32 of the frame's grey values, as they are stored."""
        return zlib.crc32(self._converted(frame, "gray", {}).tobytes())

    def _read_orientation(self, frame: av.VideoFrame) -> Orientation:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        orientation = UPRIGHT if matrix is None else from_display_matrix(bytes(matrix))
        if orientation is None:
            raise UnreadableVideo(self.path, "is to be shown turned by other than quarter turns")
        if orientation.words:
            self.applied[orientation.words] = None
        return orientation

    def _converted(self, frame: av.VideoFrame, pixel_format: str, options: dict[str, Any]) -> np.ndarray:
        threads = 1 if frame.width * frame.height <= ONE_THREAD_PIXELS else 0  # 0: as many as there are cores
        return frame.to_ndarray(format=pixel_format, threads=threads, **options)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def failed_read(error: Exception) -> str | None:
    """Return the reason if an error is of the disk or the process, not of the file's content; else None."""
    if isinstance(error, av.ExitError):
        return f"{CANNOT_BE_READ}: no answer for {STALL_S:.0f} s"
    number = getattr(error, "errno", None)
    return f"{CANNOT_BE_READ}: {os.strerror(number)}" if number in FAILED_READS else None


def has_16_bits(frame: av.VideoFrame) -> bool:
    """Return whether a frame's grey or RGB values are stored in 16 bits, which fewer bits may fill."""
    fmt = frame.format
    return (fmt.is_rgb or len(fmt.components) <= 2) and any(part.bits == 16 for part in fmt.components)


def _has_chroma(frame: av.VideoFrame) -> bool:
    return not frame.format.is_rgb and len(frame.format.components) >= 3


def is_dicom(path: Path) -> bool:
    """Return whether `path` is a DICOM file, by its ending or its preamble."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return path.exists()
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _why_unopenable(path: Path, error: Exception) -> str:
    """Return the plain reason why `path` does not open as a video."""
    reason = failed_read(error)
    if reason and getattr(error, "errno", None) != errno.EIO:
        return reason
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return "a link that leads nowhere" if path.is_symlink() else "does not exist"
    except OSError as problem:
        return f"{CANNOT_BE_READ}: {problem.strerror}"
    if reason and head.startswith(MATROSKA) and len(head) < HEAD_BYTES:  # the file was read to its end
        return f"truncated: it ends after {len(head)} bytes, within its header"
    if reason:
        return reason
    if not head:
        return "empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the video itself; run 'git lfs pull'"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text file, not a video"
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free"):
        return "truncated: the table of its frames, which this kind of file keeps at its end, is missing"
    return f"not a video that can be read ({getattr(error, 'strerror', None) or error})"
