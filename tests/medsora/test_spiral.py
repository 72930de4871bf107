"""Spiral orders: permutations whose steps are grid neighbours, from the outside in, in eight variants."""

from __future__ import annotations

import pytest
import torch

from medsora.spiral import VARIANTS, SpatialScan, scan_order, spatial_orders, spiral_order, temporal_orders

GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (4, 8), (5, 4), (16, 8)]


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_visits_neighbours_from_the_outside_in(rows: int, cols: int, variant: int) -> None:
    order = spiral_order(rows, cols, variant)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(rows * cols))
    row, col = order // cols, order % cols
    steps = row.diff().abs() + col.diff().abs()
    assert (steps == 1).all()
    ring = torch.stack((row, col, rows - 1 - row, cols - 1 - col)).amin(0)
    assert (ring.diff() >= 0).all()


def test_known_orders() -> None:
    assert spiral_order(3, 3, 0).tolist() == [0, 1, 2, 5, 8, 7, 6, 3, 4]
    assert spiral_order(3, 3, 1).tolist() == [2, 1, 0, 3, 6, 7, 8, 5, 4]  # left-right
    assert spiral_order(3, 3, 2).tolist() == [6, 7, 8, 5, 2, 1, 0, 3, 4]  # up-down
    assert spiral_order(3, 3, 4).tolist() == [0, 3, 6, 7, 8, 5, 2, 1, 4]  # counter-clockwise
    assert spiral_order(2, 3, 7).tolist() == [5, 2, 1, 0, 3, 4]  # counter-clockwise, flipped both ways


def test_turns_clockwise_below_four_and_counter_clockwise_above_when_unflipped() -> None:
    assert spiral_order(4, 4, 0)[1] == 1, "to the right along the top"
    assert spiral_order(4, 4, 4)[1] == 4, "down along the left"


@pytest.mark.parametrize("flip", [1, 2, 3])
@pytest.mark.parametrize("base", [0, 4])
def test_flips_mirror_the_unflipped_order(base: int, flip: int) -> None:
    mirrored = torch.arange(12).view(3, 4).flip([axis for axis, bit in ((1, 1), (0, 2)) if flip & bit])
    assert torch.equal(spiral_order(3, 4, base + flip), mirrored.flatten()[spiral_order(3, 4, base)])


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (3, 4), (4, 8), (8, 8)])
def test_eight_variants_differ(rows: int, cols: int) -> None:
    orders = {tuple(spiral_order(rows, cols, variant).tolist()) for variant in range(VARIANTS)}
    assert len(orders) == VARIANTS


@pytest.mark.parametrize(("rows", "cols", "variant"), [(0, 4, 0), (4, -1, 0), (4, 4, 8), (4, 4, -1)])
def test_refuses_what_is_no_spiral(rows: int, cols: int, variant: int) -> None:
    with pytest.raises(ValueError, match="spiral"):
        spiral_order(rows, cols, variant)


def test_raster_and_snake_go_line_by_line() -> None:
    assert torch.equal(scan_order("spiral", 3, 5, 6), spiral_order(3, 5, 6))
    assert scan_order("raster", 2, 3, 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert scan_order("snake", 3, 2, 0).tolist() == [0, 1, 3, 2, 4, 5]
    assert scan_order("raster", 2, 3, 5).tolist() == [2, 5, 1, 4, 0, 3]  # columns, from the right
    with pytest.raises(ValueError, match="variant 8"):
        scan_order("raster", 2, 2, 8)


def test_a_name_without_an_order_is_refused() -> None:
    with pytest.raises(ValueError, match="does not implement the scan order 'scribble'"):
        scan_order("scribble", 2, 2, 0)


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_raster_and_snake_start_where_the_spiral_starts(rows, cols, variant) -> None:
    spiral = spiral_order(rows, cols, variant)
    raster, snake = (scan_order(scan, rows, cols, variant) for scan in ("raster", "snake"))
    assert raster[0] == snake[0] == spiral[0]
    steps = (snake // cols).diff().abs() + (snake % cols).diff().abs()
    assert (steps == 1).all()
    length = rows if variant & 4 else cols
    assert torch.equal(raster.view(-1, length)[::2], snake.view(-1, length)[::2])
    assert torch.equal(raster.view(-1, length)[1::2], snake.view(-1, length)[1::2].flip(1))


@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
def test_one_axis_and_one_direction_are_parts_of_the_papers_orders(grid: tuple[int, int]) -> None:
    cpu = torch.device("cpu")
    height, width = (axis for table in spatial_orders(3, *grid, 5, True, cpu) for axis in table)
    for axis, orders in (("height", height), ("width", width)):
        (table,) = spatial_orders(3, *grid, 5, True, cpu, SpatialScan(axes=axis))
        assert torch.equal(table, orders[None])
        (table,) = spatial_orders(3, *grid, 5, True, cpu, SpatialScan(axes=axis, directions="forward"))
        assert torch.equal(table, orders[None, :1])


@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
@pytest.mark.parametrize("together", [True, False])
def test_spatial_orders_are_spirals_of_rows_and_columns_and_built_once(
    grid: tuple[int, int], together: bool
) -> None:
    frames, (rows, cols), cpu = 3, grid, torch.device("cpu")
    tables = spatial_orders(frames, rows, cols, 6, together, cpu)
    assert spatial_orders(frames, rows, cols, 6, together, cpu) is tables
    by_axis = [axis for table in tables for axis in table]
    tokens = torch.arange(frames * rows * cols).view(frames, rows, cols)
    clips = [tokens] if together else list(tokens[:, None])
    lines = (
        [clip[:, row] for row in range(rows) for clip in clips],
        [clip[:, :, col] for col in range(cols) for clip in clips],
    )
    for (there, back), expected in zip(by_axis, lines, strict=True):
        assert there.dtype == torch.int32
        assert torch.equal(back, there.flip(1))
        for order, line in zip(there.long(), expected, strict=True):
            assert torch.equal(order, line.flatten()[spiral_order(*line.shape, 6)])


def test_temporal_orders_follow_a_token_through_the_frames() -> None:
    cpu = torch.device("cpu")
    orders = temporal_orders(3, 4, True, cpu)
    assert torch.equal(orders[0, 0], torch.arange(12, dtype=torch.int32).view(3, 4).T)
    assert temporal_orders(3, 4, True, cpu) is orders
    assert temporal_orders(3, 4, False, cpu).shape == (1, 1, 12, 1)
