"""Grid-frame patterning: the frames of a clip as the cells of one picture, row by row in time."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor

from medsora.errors import BadInput


def grid_shape(frames: int) -> tuple[int, int]:
    """Return the grid's (rows, columns) of frames: 16 give 4x4, 64 give 8x8.

    Raises:
        BadInput: unless `frames` is a square number.
    """
    side = math.isqrt(max(frames, 0))
    if frames < 1 or side**2 != frames:
        raise BadInput(
            f"a clip of {frames} frames is no square grid of frames; choose a square number such as "
            f"{max(side, 1) ** 2} or {(side + 1) ** 2} (data.frames)."
        )
    return side, side


def frames_to_grid(frames: Tensor, rows: int, cols: int) -> Tensor:
    """Frames (..., rows·cols, C, H, W) -> picture (..., C, rows·H, cols·W); k lies at divmod(k, cols)."""
    return rearrange(frames, "... (r c) C H W -> ... C (r H) (c W)", r=rows, c=cols)


def grid_to_frames(picture: Tensor, rows: int, cols: int) -> Tensor:
    """Inverse of `frames_to_grid`."""
    return rearrange(picture, "... C (r H) (c W) -> ... (r c) C H W", r=rows, c=cols)
