"""Spiral scan orders: the walks over a grid of tokens along which the spatial Mamba scans (§3.1, Eq. 8)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from medsora.errors import BadInput

VARIANTS = 8


def spiral_order(rows: int, cols: int, variant: int) -> Tensor:
    """The cells of a `rows` x `cols` grid in spiral order, from the outside in.

    `order[k]` is the flat index (row * cols + column) of the cell visited at step k, so that `x[:, order]`
    walks the spiral and every step goes to a neighbouring cell.

    Args:
        rows, cols: size of the grid, each at least 1.
        variant: 0..7 = 4·ccw + 2·ud + lr. Variant 0 starts in the top left corner and turns clockwise; the
            others turn counter-clockwise (ccw) and are flipped up-down (ud) and left-right (lr).

    Returns:
        int64 tensor (rows * cols,) on the CPU, a permutation.

    Raises:
        BadInput: if the grid is empty or the variant is unknown.
    """
    if rows < 1 or cols < 1:
        raise BadInput(f"a spiral needs a grid of at least 1x1 cells, not {rows}x{cols}")
    if not 0 <= variant < VARIANTS:
        raise BadInput(f"spiral variant {variant} is unknown; there are {VARIANTS}, numbered from 0")
    counter_clockwise, up_down, left_right = variant & 4, variant & 2, variant & 1

    grid = torch.arange(rows * cols, device="cpu").view(rows, cols)
    if left_right:
        grid = grid.flip(1)
    if up_down:
        grid = grid.flip(0)
    if counter_clockwise:
        grid = grid.T

    edges = []
    while grid.numel():
        edges.append(grid[0])
        grid = torch.rot90(grid[1:])
    return torch.cat(edges)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def scan_orders(rows: int, cols: int, variant: int, device: torch.device) -> Tensor:
    """The spiral Ω and its reverse (Eq. 8), `(2, rows * cols)` int64 on `device`, built once per size."""
    order = spiral_order(rows, cols, variant)
    return torch.stack((order, order.flip(0))).to(device)
