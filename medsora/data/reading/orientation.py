"""Orientation of pictures, by turns and mirroring: read from a display matrix or from EXIF."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

EXIF_ORIENTATION = 0x0112  # the tag, in TIFF as well


class Orientation(NamedTuple):
    """Rows and columns are exchanged (`transpose`) first, then their order is reversed."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def upright(self, image: np.ndarray) -> np.ndarray:
        """Return `image` (h, w, ...) as it is to be shown; the same object if it is upright already."""
        if self == UPRIGHT:
            return image
        image = image.swapaxes(0, 1) if self.transpose else image
        image = image[::-1] if self.flip_rows else image
        return np.ascontiguousarray(image[:, ::-1] if self.flip_columns else image)

    @property
    def words(self) -> str | None:
        """Description of the change, angles clockwise; None without any."""
        return _WORDS[self]


UPRIGHT = Orientation()
_WORDS = {
    UPRIGHT: None,
    Orientation(False, False, True): "flipped left to right",
    Orientation(False, True, True): "rotated 180°",
    Orientation(False, True, False): "flipped top to bottom",
    Orientation(True, False, False): "rotated 90° and flipped left to right",
    Orientation(True, False, True): "rotated 90°",
    Orientation(True, True, True): "rotated 270° and flipped left to right",
    Orientation(True, True, False): "rotated 270°",
}
EXIF_ORIENTATIONS = dict(enumerate(_WORDS, start=1))  # EXIF numbers the eight in this order


def from_display_matrix(matrix: bytes) -> Orientation | None:
    """Return the orientation of FFmpeg's display matrix, nine int32; None unless it is of quarter turns.

    Column p and row q of the stored frame are shown in column a p + c q and row b p + d q, up to a shift,
    where the matrix begins with a, b, u, c, d. Scale is left out: FFmpeg makes it a pixel aspect ratio.
    """
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if not any((a, b, c, d)):  # no rotation at all can be read from it: players ignore it
        return UPRIGHT
    if a and d and max(abs(b), abs(c)) * 100 < min(abs(a), abs(d)):
        return Orientation(False, d < 0, a < 0)
    if b and c and max(abs(a), abs(d)) * 100 < min(abs(b), abs(c)):
        return Orientation(True, b < 0, c < 0)
    return None
