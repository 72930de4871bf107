"""Frames deeper than 8 bits a channel: which value is white, and how they become 8 bits.

A file of 16-bit, 32-bit or floating-point values seldom states which value is white, and 10 or 12 bits read
as 16 are nearly black. So white follows from the highest value in all pictures of a folder or all frames of a
video: it is the highest number of 8, 10, 12, 14 or 16 bits for integers, 1 or 255 for floating-point values.
"""

from __future__ import annotations

import numpy as np

FULL_WHITE = 65535.0  # 16 bits
_INTEGER_WHITES = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16))
_OVERSHOOT = 1.004  # factor by which interpolated floating-point values may exceed white
_MIN_PEAK_OF_255 = 16.0  # floating-point values below it may be overshooting 0..1 or dark 0..255


class UnknownWhite(Exception):
    """The values of black and white cannot be determined; the message gives the reason."""


def is_deep(values: np.ndarray) -> bool:
    """Return whether the channels of a picture have more than 8 bits."""
    return values.dtype != np.uint8


class WhiteFinder:
    """Finds the value of white over all deep pictures that are added; others are ignored."""

    def __init__(self) -> None:
        self._peaks: dict[bool, float] = {}  # True: floating-point values' peak; False: integers'

    def add(self, values: np.ndarray) -> None:
        """Add a picture, (h, w) or (h, w, c). Raises `UnknownWhite` if its black or white cannot be known."""
        if not is_deep(values):
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UnknownWhite("some of its values are no numbers, so that white cannot be known")
        floating = values.dtype.kind == "f"
        if low < ((1 - _OVERSHOOT) * max(high, 1.0) if floating else 0):
            raise UnknownWhite(f"its values begin below zero, at {low:g}, so that black cannot be known")
        self._peaks[floating] = max(high, self._peaks.get(floating, 0.0))

    def white(self) -> float | None:
        """Return the value of white, None without deep pictures. `UnknownWhite` if it cannot be known."""
        whites = {_white(peak, floating) for floating, peak in self._peaks.items()}
        if len(whites) > 1:
            raise UnknownWhite("integers and floating-point values are mixed, so that white cannot be known")
        return whites.pop() if whites else None


def _white(peak: float, floating: bool) -> float:
    if not floating and peak <= FULL_WHITE:
        return next(white for white in _INTEGER_WHITES if peak <= white)
    if floating and peak <= _OVERSHOOT:
        return 1.0
    if floating and _MIN_PEAK_OF_255 <= peak <= 255 * _OVERSHOOT:
        return 255.0
    known = "0 to 1 or 0 to 255" if floating else f"0 to at most {FULL_WHITE:.0f}"
    kind = "floating-point values" if floating else "values"
    raise UnknownWhite(f"its {kind} reach {peak:g}; only {known} are read, for others white cannot be known")


def to_eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Scale deep values (h, w) or (h, w, 3) so that `white` becomes 255: uint8 (h, w, 3)."""
    if values.ndim == 3 and values.dtype == np.uint16 and white == FULL_WHITE:
        levels = (values >> 8).astype(np.uint8)  # colours of full depth have always been read so
    else:
        levels = (values.astype(np.float32) / np.float32(white / 255)).clip(0, 255).round().astype(np.uint8)
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=-1)


def depth_words(white: float | None) -> str | None:
    """Return what scaling by `white` is, in words; None where all 16 bits are used, or all are 8."""
    return None if white in (None, FULL_WHITE) else f"values 0 to {white:g} scaled to 0 to 255"
