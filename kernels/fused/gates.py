"""Eq. 9 as one kernel: both gates' products and the gated sum; forward only, for sampling.

In 16-bit numbers: products of float32 are left to PyTorch, which has faster ones than three of TF32 each.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medsora.kernels.fused.ops import PRECISION, sigmoid_approximately
from medsora.kernels.fused.plan import gates_tile, on


@triton.jit
def gated(
    values,
    weight,
    bias,
    row,
    column,
    inside,
    exists,
    WIDTH: tl.constexpr,
    TERMS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A tile of values·σ(values·weightᵀ + bias), whose sums are of PARTS times TERMS products."""
    gate = tl.zeros((row.shape[0], column.shape[0]), dtype=tl.float32)
    for part in range(PARTS):
        term = part * TERMS + tl.arange(0, TERMS)
        real = term < WIDTH
        left = tl.load(
            values + row[:, None] * WIDTH + term[None, :], mask=inside[:, None] & real[None, :], other=0.0
        )
        right = tl.load(
            weight + column[None, :] * WIDTH + term[:, None], mask=exists[None, :] & real[:, None], other=0.0
        )
        gate = tl.dot(left, right, gate, input_precision=PRECISION)
    gate += tl.load(bias + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    mask = inside[:, None] & exists[None, :]
    value = tl.load(values + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
    return value.to(tl.float32) * sigmoid_approximately(gate)


@triton.jit(do_not_specialize=("rows",))
def gates_kernel(
    y,  # (2, rows, WIDTH): outputs of the scans along the height and along the width
    height_weight,  # (WIDTH, WIDTH), and bias (WIDTH,)
    height_bias,
    width_weight,
    width_bias,
    out,  # (rows, WIDTH), written
    rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: ROWS x COLUMNS of the sum of both axes' gated values."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, exists = row < rows, column < WIDTH
    total = gated(y, height_weight, height_bias, row, column, inside, exists, WIDTH, TERMS, PARTS)
    along_width = y + rows.to(tl.int64) * WIDTH
    total += gated(along_width, width_weight, width_bias, row, column, inside, exists, WIDTH, TERMS, PARTS)
    mask = inside[:, None] & exists[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], total.to(out.dtype.element_ty), mask=mask)


@torch.library.custom_op("medsora::gates", mutates_args=())
def gates(
    y: Tensor, height_weight: Tensor, height_bias: Tensor, width_weight: Tensor, width_bias: Tensor
) -> Tensor:
    """y·σ(y·weightᵀ + bias) of each axis, added: (2, ..., d) -> (..., d)."""
    width = y.shape[-1]
    rows = y.numel() // (2 * width)
    out = y.new_empty(y.shape[1:])
    tile = gates_tile(rows, width, y.device)
    with on(y.device):
        gates_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, tile.columns))](
            *(part.contiguous() for part in (y, height_weight, height_bias, width_weight, width_bias)),
            out,
            rows,
            WIDTH=width,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            TERMS=tile.terms,
            PARTS=triton.cdiv(width, tile.terms),
            num_warps=tile.warps,
            num_stages=3,
        )
    return out


@gates.register_fake
def _(y, height_weight, height_bias, width_weight, width_bias) -> Tensor:
    return y.new_empty(y.shape[1:])


@register_flop_formula(torch.ops.medsora.gates)
def _flops(y_shape: torch.Size, *_, **__) -> int:
    """FLOPs of both products."""
    return 2 * math.prod(y_shape) * y_shape[-1]
