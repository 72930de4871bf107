"""One way to bring any picture to a clip's size: scaled until it covers it, then cropped in the middle."""

from __future__ import annotations

import numpy as np
from PIL import Image


def height_width(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return `size`, one number of pixels for squares or (H, W), as (H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"the size {size} is no picture size; both sides must be at least 1 pixel.")
    return int(height), int(width)


def resize_and_crop(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale `image`, uint8 (h, w, 3), until it just covers `size` and cut out the middle: uint8 (H, W, 3).

    Bilinear with antialiasing, scale and crop in one step; an image that has the size already is returned as
    it is.
    """
    target_height, target_width = height_width(size)
    height, width = image.shape[:2]
    if (height, width) == (target_height, target_width):
        return image
    scale = min(height / target_height, width / target_width)
    crop_height, crop_width = target_height * scale, target_width * scale
    top, left = (height - crop_height) / 2, (width - crop_width) / 2
    target, box = (target_width, target_height), (left, top, left + crop_width, top + crop_height)
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR, box=box))
