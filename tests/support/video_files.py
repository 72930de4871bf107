"""Pictures, and small videos in many codecs, each frame unlike every other, and ways to break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# ending -> encoder, pixel format, options; key frames every 12 frames, B-frames where the codec has them
CODECS = {
    "h264_b_frames.mp4": ("libx264", "yuv420p", {"g": "12", "bf": "3", "x264-params": "scenecut=0"}),
    "h264_open_gop.mkv": (
        "libx264",
        "yuv420p",
        {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    ),
    "h264_refresh.mp4": ("libx264", "yuv420p", {"g": "12", "x264-params": "intra-refresh=1"}),
    "h264.mov": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    "h264.flv": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "keyint=12:log-level=none"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "12"}),
    "mpeg4_b_frames.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "av1.mp4": ("libsvtav1", "yuv420p", {"g": "12", "preset": "12", "svtav1-params": "lookahead=0"}),
    "wmv2.wmv": ("wmv2", "yuv420p", {"g": "12"}),
    "palette.gif": ("gif", "rgb8", {}),
    "ffv1.mkv": ("ffv1", "bgr0", {"g": "12"}),
}


def moving_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return uint8 (count, H, W, 3): a drifting pattern with the frame number in black and white blocks."""
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for k in range(count):
        for channel, period in enumerate((17.0, 23.0, 31.0)):
            wave = np.sin((columns + 1.5 * k) / period * 2) + np.cos((rows - k) / period * 3)
            frames[k, ..., channel] = 127 + 60 * wave
        for bit in range(min(12, width // 4)):
            frames[k, :4, 4 * bit : 4 * bit + 4] = 255 * (k >> bit & 1)
    return frames


def write_pictures(
    folder: Path, names: str | Iterable[str], pictures: Sequence[np.ndarray], **options: Any
) -> Path:
    """Write pictures under names, or under one pattern with their numbers from 0; return the folder."""
    if isinstance(names, str):
        names = map(names.format, range(len(pictures)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(folder / name, **options)
    return folder


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    *,
    rate: int = 25,
    times: list[int] | None = None,
    movflags: str | None = None,
) -> Path:
    """Write `frames`; with `times`, in milliseconds, at a variable frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        stream.options = options or {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy_from(whole: Path, part: Path, frames: int, rate: int = 25) -> None:
    """Write what `ffmpeg -ss -c copy` cuts out of `whole`: an edit list hides its first frames."""
    with av.open(str(whole)) as source, av.open(str(part), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        skip = int(Fraction(frames, rate) / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - skip, packet.dts - skip, copy
                target.mux(packet)


def encode_named(folder: Path, name: str, frames: np.ndarray) -> Path:
    """Write `frames` in the way that `CODECS` gives for `name`."""
    codec, pixel_format, options = CODECS[name]
    return encode(folder / name, frames, codec, pixel_format, options)


def late_stream(path: Path, frames: np.ndarray, from_packet: int) -> Path:
    """Write MPEG-TS whose packets belong to another stream, of which no table tells, from one picture on."""
    content = bytearray(encode(path, frames, "mpeg2video", "yuv420p").read_bytes())
    packets = range(0, len(content), 188)
    pids = {at: int.from_bytes(content[at + 1 : at + 3], "big") & 0x1FFF for at in packets}
    begins = [at for at in packets if pids[at] == 0x100 and content[at + 1] & 0x40]
    for at in packets:
        if at >= begins[from_packet] and pids[at] == 0x100:
            content[at + 2] ^= 0x40
    path.write_bytes(content)
    return path


def cut(path: Path, part: float) -> Path:
    """Keep the first `part` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


BORDERS = (12, 20, 100, 28)  # pixels: top, bottom, left, right


def bordered(frames: np.ndarray) -> np.ndarray:
    """Put `BORDERS` of black around frames."""
    return np.pad(frames, [(0, 0), BORDERS[:2], BORDERS[2:], (0, 0)])


def lettered(
    frames: np.ndarray,
    text: str = "DOE, JANE",
    at: tuple[int, int] = (4, 20),
    *,
    behind: str = "scene",
    fill: tuple[int, int, int] = (255, 255, 255),
    height: int = 12,
) -> np.ndarray:
    """Burn `text` into every frame; `behind` it is the scene, a black box, or the letters' black outline."""
    written = []
    for frame in frames:
        image = Image.fromarray(frame)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(height)
        if behind == "box":
            left, top, right, bottom = draw.textbbox(at, text, font=font)
            draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=0)
        outline = 1 if behind == "outline" else 0
        draw.text(at, text, fill=fill, font=font, stroke_width=outline, stroke_fill=(0, 0, 0))
        written.append(np.asarray(image))
    return np.stack(written)
