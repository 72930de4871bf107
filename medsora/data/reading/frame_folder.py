"""A folder of single pictures, taken in natural order, as a video."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medsora.data.reading.decoding import MAX_PIXELS, MAX_SIDE, SIZE_LIMIT, UnreadableVideo

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"])

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")  # Pillow's others run programs (EPS) or are rare


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which frame_2 comes before frame_10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name.lower()) if part
    ]


def list_frames(folder: str | Path) -> list[Path]:
    """Return the pictures that lie directly in `folder` in natural order, hidden ones left out."""
    found = [
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda path: (natural_key(path.name), path.name))


def read_image(path: str | Path) -> np.ndarray:
    """Return a picture as uint8 (H, W, 3). Raises `UnreadableVideo` with the reason if it does not decode."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableVideo(path, "not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise UnreadableVideo(path, f"its header claims {width}x{height} pixels; {SIZE_LIMIT}")
            return np.asarray(_eight_bits(image).convert("RGB"))
    except UnreadableVideo:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableVideo(path, f"its header claims too many pixels; {SIZE_LIMIT}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's many decoders raise
        raise UnreadableVideo(path, f"does not decode as a picture ({_plain(error)})") from error


def _plain(error: Exception) -> str:
    """Return what went wrong without the path, which Pillow repeats."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is no picture"
    return getattr(error, "strerror", None) or str(error)


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16") and image.mode != "I":
        return image
    grey = np.asarray(image).astype(np.float64)  # Pillow would clip 16-bit grey values to 255
    return Image.fromarray((grey / 257).clip(0, 255).round().astype(np.uint8))
