"""Margins that are cut off every frame, as parts of its height and width."""

from __future__ import annotations

import numpy as np

Margins = tuple[float, float, float, float]  # top, bottom, left, right: parts of height, height, width, width
NO_MARGINS: Margins = (0.0, 0.0, 0.0, 0.0)


def crop(image: np.ndarray, margins: Margins) -> np.ndarray:
    """Return `image` (h, w, ...) without its margins; at least one pixel is left."""
    height, width = image.shape[:2]
    sides = (height, height, width, width)
    top, bottom, left, right = (round(part * side) for part, side in zip(margins, sides, strict=True))
    return image[top : max(height - bottom, top + 1), left : max(width - right, left + 1)]
