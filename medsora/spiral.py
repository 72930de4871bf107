"""Scan orders: permutations of a grid of tokens along which the spatial Mamba scans (§3.1, Eq. 8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from medsora.errors import BadInput
from medsora.tables import kept_table

VARIANTS = 8


class SpatialScan(NamedTuple):
    """Order of the spatial scan: the paper's (Eq. 8), or one of `medsora.config.switches`."""

    scan: str = "spiral"
    axes: str = "both"
    directions: str = "both"


def spiral_order(rows: int, cols: int, variant: int) -> Tensor:
    """The cells of a `rows` x `cols` grid in spiral order, from the outside in.

    `order[k]` is the flat index (row * cols + column) of the cell visited at step k, so that `x[:, order]`
    follows the spiral and every step goes to a neighbouring cell.

    Args:
        rows, cols: size of the grid, each at least 1.
        variant: 0..7 = 4·ccw + 2·ud + lr. Variant 0 starts in the top left corner and turns clockwise; the
            others turn counter-clockwise (ccw) and are flipped up-down (ud) and left-right (lr).

    Returns:
        int64 tensor (rows * cols,) on the CPU, a permutation.

    Raises:
        BadInput: if the grid is empty or the variant is unknown.
    """
    grid = _turned_grid(rows, cols, variant)
    edges = []
    while grid.numel():
        edges.append(grid[0])
        grid = torch.rot90(grid[1:])
    return torch.cat(edges)


def scan_order(scan: str, rows: int, cols: int, variant: int) -> Tensor:
    """Return the order `scan` of the cells of a grid: arguments and result as in `spiral_order`.

    A raster scans every line in the same direction, a snake every second one backwards.
    The variants turn these as they turn the spiral: 4·ccw scans along columns instead of rows.
    Raises `ValueError` for an unknown `scan`.
    """
    if scan == "spiral":
        return spiral_order(rows, cols, variant)
    grid = _turned_grid(rows, cols, variant).clone()
    if scan == "snake":
        grid[1::2] = grid[1::2].flip(1)
    elif scan != "raster":
        raise ValueError(f"scan_order in medsora/spiral.py does not implement the scan order {scan!r}.")
    return grid.flatten()


def _turned_grid(rows: int, cols: int, variant: int) -> Tensor:
    """The numbers of the cells, turned such that every variant's order starts in the top left corner."""
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
    return grid.T if counter_clockwise else grid


@kept_table
def spatial_orders(
    frames: int,
    rows: int,
    cols: int,
    variant: int,
    together: bool,
    device: torch.device,
    scan: SpatialScan = SpatialScan(),  # noqa: B008 (immutable)
) -> tuple[Tensor, ...]:
    """The spiral Ω and its reverse along both axes (Eq. 8), as orders of `kernels.mamba2_scan`.

    `scan` may name another order, one axis or the forward direction alone.

    Tokens are numbered frame by frame, row by row. Per row of tokens a sequence runs over frames x columns,
    per column one over frames x rows; if the frames do not belong `together`, there is one per frame as well.

    Returns:
        int32 tables (axes, directions, sequences, steps) on `device`, rows before columns, built once per
        size: a single one if the axes have sequences of the same number and length, else one per axis.
    """
    numbers = torch.arange(frames * rows * cols, device="cpu").view(frames, rows, cols)
    depth = frames if together else 1
    axes = []
    by_row, by_column = rearrange(numbers, "n h w -> h n w"), rearrange(numbers, "n h w -> w n h")
    for axis, planes, side in (("height", by_row, cols), ("width", by_column, rows)):
        if scan.axes in ("both", axis):
            lines = planes.reshape(-1, depth * side)
            order = scan_order(scan.scan, depth, side, variant)
            orders = (order, order.flip(0)) if scan.directions == "both" else (order,)
            axes.append(torch.stack([lines[:, order] for order in orders])[None])
    tables = (torch.cat(axes),) if rows == cols else tuple(axes)
    return tuple(table.int().contiguous().to(device) for table in tables)


@kept_table
def temporal_orders(frames: int, tokens: int, together: bool, device: torch.device) -> Tensor:
    """Each token position along the frames (Eq. 10), as orders (1, 1, sequences, steps) of `mamba2_scan`.

    If the frames do not belong `together`, every token is a sequence of its own.
    """
    numbers = torch.arange(frames * tokens, dtype=torch.int32, device="cpu").view(frames, tokens)
    orders = numbers.T if together else numbers.view(-1, 1)
    return orders[None, None].contiguous().to(device)
