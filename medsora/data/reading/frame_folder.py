"""A folder of single pictures, in the order of their names, as a video."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from medsora.data.reading.checksums import has_damaged_pixels
from medsora.data.reading.decoding import MAX_PIXELS, MAX_SIDE, SIZE_LIMIT, UnreadableVideo, failed_read
from medsora.data.reading.depth import FULL_WHITE, UnknownWhite, WhiteFinder, is_deep, to_eight_bits
from medsora.data.reading.memory import PICTURE_BYTES_PER_PIXEL, decoding_memory
from medsora.data.reading.orientation import EXIF_ORIENTATION, EXIF_ORIENTATIONS, UPRIGHT, Orientation
from medsora.data.reading.picture_names import natural_order, sort_pictures
from medsora.data.sheet import is_drawn

DAMAGED_PIXELS = "is damaged: its pixels do not match their checksum; copy it again, or save it anew"
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"])

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")  # Pillow's others run programs (EPS) or are rare

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_TIFF_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 1 | 4  # pages that are a smaller copy or the mask of another


def list_frames(folder: str | Path) -> list[Path]:
    """Return the frames that lie directly in `folder` in order.

    Hidden files are left out, and what MedSora's commands draw beside clips. If its pictures are not those of
    one recording, these are all pictures in natural order.
    """
    pictures = [
        path.name
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not is_drawn(path.name)
    ]
    recordings = list(sort_pictures(pictures).recordings.values())
    names = recordings[0].pictures if len(recordings) == 1 else natural_order(pictures)
    return [Path(folder, name) for name in names]


@dataclass(frozen=True)
class Picture:
    """A picture's upright values: uint8 (h, w, 3), or deeper ones (h, w) or (h, w, 3) as they are stored.

    Transparent pixels have their hidden colours, which viewers do not show.
    """

    values: np.ndarray
    orientation: Orientation
    transparent: bool = False


def read_image(path: str | Path, white: float | None = None) -> np.ndarray:
    """Return a picture upright and as uint8 (H, W, 3).

    `white` is the value of white where a channel has more than 8 bits (`medsora.data.reading.depth`); by
    default it follows from this picture alone. Raises `UnreadableVideo` with the reason if the picture does
    not decode or cannot be interpreted.
    """
    values = read_picture(path).values
    return to_eight_bits(values, white or white_of([path])) if is_deep(values) else values


def white_of(paths: Sequence[str | Path]) -> float | None:
    """Return the value of white over the pictures that decode; None if none is deeper than 8 bits.

    Raises `UnreadableVideo` if it cannot be known.
    """
    finder, path = WhiteFinder(), None
    try:
        for path in paths:
            with suppress(UnreadableVideo):
                finder.add(read_picture(path).values)
        return finder.white()
    except UnknownWhite as error:
        raise UnreadableVideo(path, str(error)) from error


def read_picture(path: str | Path) -> Picture:
    """Return a picture's values. Raises `UnreadableVideo` with the reason if it does not decode."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableVideo(path, "not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise UnreadableVideo(path, f"its header claims {width}x{height} pixels; {SIZE_LIMIT}")
            _require_one(path, image)
            if image.format == "PNG" and has_damaged_pixels(Path(path)):
                raise UnreadableVideo(path, DAMAGED_PIXELS)
            with decoding_memory(width * height * PICTURE_BYTES_PER_PIXEL):
                return _picture(path, image)
    except UnreadableVideo:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableVideo(path, f"its header claims too many pixels; {SIZE_LIMIT}") from error
    except Exception as error:  # damage makes Pillow's decoders raise many kinds of errors
        reason = failed_read(error) or f"does not decode as a picture ({_plain(path, error)})"
        raise UnreadableVideo(path, reason) from error


def _plain(path: str | Path, error: Exception) -> str:
    """Return what went wrong without the path, which Pillow repeats."""
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error)
    with open(path, "rb") as file:
        if file.read(4) in (b"II*\0", b"MM\0*"):
            return "a TIFF of a kind that is not read, such as floating-point colours; save it as PNG"
    return "its content is no picture"


def _require_one(path: str | Path, image: Image.Image) -> None:
    """Raise `UnreadableVideo` if the file holds several pictures; an MPO is one, with a preview."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    if image.format == "TIFF":
        several = 0
        for page in range(image.n_frames):
            image.seek(page)
            several += not int(image.tag_v2.get(_TIFF_SUBFILE_TYPE, 0)) & _REDUCED_OR_MASK
        image.seek(0)
        if several == 1:
            return
    name = Path(path).name
    raise UnreadableVideo(
        path,
        f"an animation or document of {image.n_frames} pictures; write each to a file of its own first, "
        f"such as with: magick {name} {Path(name).stem}-%04d.png",
    )


def _picture(path: str | Path, image: Image.Image) -> Picture:
    deep_colours = _has_deep_colours(image)
    deep = deep_colours or image.mode in ("I", "F") or image.mode.startswith("I;16")
    white = None  # where the file states it
    orientation = UPRIGHT
    if image.format == "TIFF":
        tags = image.tag_v2
        orientation = EXIF_ORIENTATIONS.get(tags.get(EXIF_ORIENTATION), UPRIGHT)
        if deep and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise UnreadableVideo(path, "a TIFF of more than 8 bits in which 0 is white; save it as PNG")
        if deep and orientation != UPRIGHT:  # which neither Pillow nor OpenCV turns rightly
            words = f"a TIFF of more than 8 bits that is to be {orientation.words}; save it as PNG"
            raise UnreadableVideo(path, words)
        if image.mode == "I;16" and tags.get(_TIFF_BITS) == (12,):
            white = 2.0**12 - 1
    elif image.format == "PPM" and image.mode == "I":
        white = FULL_WHITE  # Pillow scales these
    values = _deep_colours(path) if deep_colours else np.asarray(image if deep else image.convert("RGB"))
    if image.format != "TIFF":  # which Pillow turns
        orientation = _exif_orientation(image)
        values = orientation.upright(values)
    values = values if white is None else to_eight_bits(values, white)
    return Picture(values, orientation, not deep and _is_transparent(image))


def _is_transparent(image: Image.Image) -> bool:
    """Return whether a loaded image of 8 bits has pixels that are not opaque."""
    alpha = image.mode in ("LA", "PA", "RGBA") or (image.mode == "P" and image.has_transparency_data)
    return alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _has_deep_colours(image: Image.Image) -> bool:
    """Return whether an image, not loaded yet, has 16-bit colours, of which Pillow drops half the bits."""
    arguments = image.tile[0].args if image.tile else ""
    rawmode = arguments if isinstance(arguments, str) else str(arguments[0])
    return image.mode.startswith("RGB") and rawmode.endswith((";16B", ";16L", ";16N"))


def _deep_colours(path: str | Path) -> np.ndarray:
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        values = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("its 16-bit colours cannot be decoded") from error
    if values is None or values.dtype != np.uint16:
        raise ValueError("its 16-bit colours cannot be decoded")
    return values if values.ndim == 2 else values[..., ::-1]


def _exif_orientation(image: Image.Image) -> Orientation:
    """Return a loaded image's orientation by its EXIF data; damaged EXIF is ignored, as every viewer does."""
    try:
        return EXIF_ORIENTATIONS.get(image.getexif().get(EXIF_ORIENTATION), UPRIGHT)
    except Exception:  # damage makes its parser raise many kinds of errors
        return UPRIGHT
