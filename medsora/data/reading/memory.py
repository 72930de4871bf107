"""Memory of decoding: counted from a file's header before any frame is decoded, and bounded.

A decoder keeps the pictures that others are predicted from, sixteen at most in H.264 and HEVC. At
8192 x 4080 pixels in 4:4:4 these take 1.6 GiB, which a file of 100 KB can require. So a video or picture
takes what it needs from `MAX_DECODING_BYTES` of its process while it is open, waits where others have taken
it, and is refused where it needs more than all. It takes a share at least, within which its pictures may
grow. The loaders of a training share the bound: `share_with_loaders`.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from av import VideoFormat
from av.video.codeccontext import VideoCodecContext

FILES_AT_ONCE = 4  # files opened at the same time, which share the bound
MAX_DECODING_BYTES = 7 * 2**27  # 896 MiB: 8K in 4:2:0 with the reference frames that its levels allow
PICTURE_BYTES_PER_PIXEL = 16  # a picture's values as read, converted, turned and, in 16 bits, twice as wide
CODED_BESIDE, HELD_BESIDE = 2, 3  # further frames in a decoder; in deinterlacing and its detection
RGB_BYTES_PER_PIXEL = 6  # a frame as RGB and a copy of it
# Reference frames that a codec allows; dav1d's threads work on several frames besides.
REFERENCES = {"h264": 16, "hevc": 16, "vvc": 16, "libdav1d": 16, "av1": 8, "vp9": 8, "vp8": 3}
MAX_OTHER_REFERENCES = 2  # MPEG-1, -2 and -4 and their like; none in codecs of single pictures
_SPS = {"h264": 7, "hevc": 33}  # NAL units that hold a sequence's parameters
_CHROMA_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244}


def _bytes_per_pixel(context: VideoCodecContext) -> float:
    """Return what a pixel of a decoded frame takes; the maximum where the header does not state it."""
    if context.pix_fmt is None:
        return 8.0
    return VideoFormat(context.pix_fmt, 16, 16).padded_bits_per_pixel / 8


def decoding_bytes_per_pixel(context: VideoCodecContext) -> float:
    """Return how much decoding and converting a stream takes at most, for each pixel of its frames."""
    references = reference_frames(context.name, context.extradata)
    frames = max(references, context.reorder_depth or 0) + CODED_BESIDE + HELD_BESIDE
    return frames * _bytes_per_pixel(context) + RGB_BYTES_PER_PIXEL


def reference_frames(codec: str, header: bytes | None) -> int:
    """Return how many pictures a decoder of `codec` keeps to predict others from, by the stream's header.

    Where the header (an H.264 or HEVC stream's parameter sets) does not state it, what the codec allows.
    """
    most = REFERENCES.get(codec, MAX_OTHER_REFERENCES)
    if codec not in _SPS or not header:
        return most
    try:
        stated = [
            (_h264_references if codec == "h264" else _hevc_references)(_Bits(unit))
            for unit in _nal_units(codec, header)
            if (unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63) == _SPS[codec]
        ]
    except (IndexError, ValueError):  # damaged
        return most
    return min(max(stated, default=most), most)


class _Bits:
    """Reads bits and Exp-Golomb numbers (H.264 §9.1) of a NAL unit. Raises `IndexError` behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data.replace(b"\0\0\3", b"\0\0"), 0  # without the escapes

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - self._at % 8) & 1
            self._at += 1
        return value

    def number(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("no Exp-Golomb number is so long")
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        value = self.number()
        return (value + 1) // 2 if value % 2 else -value // 2


def _nal_units(codec: str, header: bytes) -> list[bytes]:
    """Return the units in a header as MP4 and Matroska keep it (avcC, hvcC), or between start codes."""
    if header[0] != 1:
        return [unit for unit in header.split(b"\0\0\1")[1:] if unit]
    units, at = [], 5 if codec == "h264" else 22
    arrays = 1 if codec == "h264" else header[at]
    at += codec == "hevc"
    for _ in range(arrays):
        if codec == "h264":
            count, at = header[at] & 31, at + 1
        else:
            count, at = int.from_bytes(header[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size, at = int.from_bytes(header[at : at + 2], "big"), at + 2
            units.append(header[at : at + size])
            at += size
    return [unit for unit in units if unit]


def _h264_references(bits: _Bits) -> int:
    """Return max_num_ref_frames of an H.264 sequence parameter set (§7.3.2.1.1)."""
    bits.read(8)
    profile = bits.read(8)
    bits.read(16)
    bits.number()
    if profile in _CHROMA_PROFILES:
        chroma = bits.number()
        if chroma == 3:
            bits.read(1)
        bits.number(), bits.number(), bits.read(1)
        if bits.read(1):
            for index in range(12 if chroma == 3 else 8):
                _skip_scaling_list(bits, index)
    bits.number()
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.read(1), bits.signed(), bits.signed()
        for _ in range(bits.number()):
            bits.signed()
    return bits.number()


def _skip_scaling_list(bits: _Bits, index: int) -> None:
    last = following = 8
    for _ in range((16 if index < 6 else 64) if bits.read(1) else 0):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _hevc_references(bits: _Bits) -> int:
    """Return the largest sps_max_dec_pic_buffering of an HEVC sequence parameter set (§7.3.2.2.1)."""
    bits.read(16 + 4)
    layers = bits.read(3)
    bits.read(1 + 88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.read(88 * profile + 8 * level)
    bits.number()
    if bits.number() == 3:
        bits.read(1)
    bits.number(), bits.number()
    if bits.read(1):
        for _ in range(4):
            bits.number()
    bits.number(), bits.number(), bits.number()
    buffered = []
    for _ in range(layers + 1 if bits.read(1) else 1):
        buffered.append(bits.number() + 1)
        bits.number(), bits.number()
    return max(buffered)


class _Budget:
    """Rest of the bound for the threads of this process, and the rule for loaders that need more."""

    def __init__(self) -> None:
        self._free = MAX_DECODING_BYTES
        self._changed = threading.Condition()
        self._own = threading.local()
        self.share, self.lock = MAX_DECODING_BYTES // FILES_AT_ONCE, None

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold `size` bytes once they are free; who holds some already does not wait for itself."""
        nested, taken = getattr(self._own, "depth", 0), max(size, self.share)
        with self._changed:
            if not nested:
                self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        self._own.depth = nested + 1
        alone = self.lock is not None and size > self.share and not nested
        try:
            if alone:
                fcntl.lockf(self.lock, fcntl.LOCK_EX)
            yield
        finally:
            if alone:
                fcntl.lockf(self.lock, fcntl.LOCK_UN)
            self._own.depth = max(0, getattr(self._own, "depth", 0) - 1)  # a forgotten reader ends anywhere
            with self._changed:
                self._free += taken
                self._changed.notify_all()


_budget = _Budget()


def decoding_memory(size: int) -> AbstractContextManager[None]:
    """Hold `size` bytes of the bound, or a share, while a file is decoded, waiting until they are free."""
    return _budget.taken(size)


def granted_bytes(size: int) -> int:
    """Return how many bytes a request for `size` bytes may use."""
    return max(size, _budget.share)


def share_with_loaders(lock: Path, loaders: int) -> None:
    """Share the bound among `loaders` processes: only one at a time may decode more than its share.

    `lock` is a file that all of them can open. Together they stay below twice the bound.
    """
    _budget.share = MAX_DECODING_BYTES // max(loaders, FILES_AT_ONCE)
    _budget.lock = lock.open("ab")
