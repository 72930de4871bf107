"""Operations between the products of a denoiser's block, each as one kernel; forward only, for sampling.

A step of a small batch is a few hundred launches, each of which costs more than its arithmetic; a step of a
large one moves every token through memory for each operator.

Shapes: B samples, n frames, l tokens of a frame, d wide; N = B·n frames in a row.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medsora.kernels.fused.ops import PRECISION, exp2_approximately, sigmoid
from medsora.kernels.fused.plan import (
    attention_tile,
    attention_warps,
    before_hopper,
    fitting_attention_tile,
    on,
)

ELEMENTS = 1024  # elements per program of an elementwise kernel
UNIT = 16  # divides the number of elements of most tensors


@triton.jit(do_not_specialize=("frames", "length"))
def add_norm_kernel(
    x,  # (N, l, d)
    branch,  # (N, l, d), read if ADDS
    mean_square,  # (SHARES, N, l) float32: parts of the square of what divides the branch
    gate,  # this and the next two: (d,) of a frame, frames `frame_stride` and samples `sample_stride` apart
    shift,
    scale,
    weight,  # (d,), this and the next read if AFFINE
    bias,
    total,  # (N, l, d), written if ADDS
    out,  # (N, l, d), written
    sample_stride,
    frame_stride,
    frames,
    length,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    AFFINE: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_SHARES: tl.constexpr,
):
    """One program: one token. total = x + gate·branch; out = LayerNorm(total)·(1 + scale) + shift."""
    row = tl.program_id(0).to(tl.int64)
    frame = row // length
    modulation = (frame // frames) * sample_stride + (frame % frames) * frame_stride
    d = tl.arange(0, BLOCK)
    exists = d < WIDTH
    value = tl.load(x + row * WIDTH + d, mask=exists, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(branch + row * WIDTH + d, mask=exists, other=0.0).to(tl.float32)
        if SHARES > 0:
            share = tl.arange(0, BLOCK_SHARES)
            part = mean_square + share.to(tl.int64) * tl.num_programs(0) + row
            added *= 1.0 / tl.sqrt(tl.sum(tl.load(part, mask=share < SHARES, other=0.0)))
        value += tl.load(gate + modulation + d, mask=exists, other=0.0).to(tl.float32) * added
        tl.store(total + row * WIDTH + d, value.to(total.dtype.element_ty), mask=exists)
    centred = tl.where(exists, value - tl.sum(value) / WIDTH, 0.0)
    normed = centred * (1.0 / tl.sqrt(tl.sum(centred * centred) / WIDTH + eps))
    if AFFINE:
        normed *= tl.load(weight + d, mask=exists, other=0.0).to(tl.float32)
        normed += tl.load(bias + d, mask=exists, other=0.0).to(tl.float32)
    normed *= 1.0 + tl.load(scale + modulation + d, mask=exists, other=0.0).to(tl.float32)
    normed += tl.load(shift + modulation + d, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + d, normed.to(out.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=("count",))
def gated_sum_kernel(
    height, gate_height, width, gate_width, out, count, BLOCK: tl.constexpr, UNIT: tl.constexpr
):
    """out = height·σ(gate_height) + width·σ(gate_width), element by element; `count` times UNIT elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count.to(tl.int64) * UNIT  # a multiple of what a thread moves: no access is split
    total = tl.load(height + at, mask=inside, other=0.0).to(tl.float32)
    total *= sigmoid(tl.load(gate_height + at, mask=inside, other=0.0).to(tl.float32))
    other = tl.load(width + at, mask=inside, other=0.0).to(tl.float32)
    total += other * sigmoid(tl.load(gate_width + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotated(place, cos, sin, at, position, f, exists, FEATURES: tl.constexpr):
    """Both halves of the rotated features of tokens, f of each. `at` are the tokens' offsets."""
    half: tl.constexpr = FEATURES // 2
    dtype = place.dtype.element_ty
    first = tl.load(place + at[:, None] + f[None, :], mask=exists, other=0.0).to(tl.float32)
    second = tl.load(place + at[:, None] + half + f[None, :], mask=exists, other=0.0).to(tl.float32)
    turn = position[:, None] * FEATURES + half + f[None, :]
    c, s = tl.load(cos + turn, mask=exists, other=0.0), tl.load(sin + turn, mask=exists, other=0.0)
    return (first * c - second * s).to(dtype), (second * c + first * s).to(dtype)


@triton.jit(do_not_specialize=("length", "tiles"))
def local_attention_kernel(
    qkv,  # (N, l, 3, HEADS, FEATURES)
    cos,  # (2, l, FEATURES) float32: cosines for q, for k
    sin,  # the first half of the features carries a minus
    out,  # (N, l, HEADS, FEATURES), written
    length,
    tiles,
    log2_scale,  # factor of the scores times log2(e), for exp2
    HEADS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BEFORE: tl.constexpr,  # keys before a tile's first query: 0 where one tile holds the frame
):
    """One program: a tile of queries of one head of one frame, and all keys that they see."""
    frame = (tl.program_id(0) // tiles).to(tl.int64)
    head = tl.program_id(1)
    first = (tl.program_id(0) % tiles) * QUERIES
    f = tl.arange(0, BLOCK_F)
    q_place = first + tl.arange(0, QUERIES)
    k_place = first - BEFORE + tl.arange(0, KEYS)
    q_real, k_real = q_place < length, (k_place >= 0) & (k_place < length)
    q_mask = q_real[:, None] & (f < FEATURES)[None, :]
    k_mask = k_real[:, None] & (f < FEATURES)[None, :]

    row: tl.constexpr = HEADS * FEATURES
    tokens = qkv + frame * length * 3 * row + head * FEATURES
    dtype = qkv.dtype.element_ty
    half = tl.arange(0, BLOCK_HALF)
    q_half = q_real[:, None] & (half < FEATURES // 2)[None, :]
    k_half = k_real[:, None] & (half < FEATURES // 2)[None, :]
    q_first, q_second = rotated(tokens, cos, sin, q_place * 3 * row, q_place, half, q_half, FEATURES)
    k_first, k_second = rotated(
        tokens + row, cos, sin, k_place * 3 * row, length + k_place, half, k_half, FEATURES
    )
    v = tl.load(tokens + 2 * row + k_place[:, None] * 3 * row + f[None, :], mask=k_mask, other=0.0)

    scores = tl.dot(q_first, tl.trans(k_first), input_precision=PRECISION)
    scores += tl.dot(q_second, tl.trans(k_second), input_precision=PRECISION)
    apart = tl.abs(q_place[:, None] - k_place[None, :])
    scores = tl.where((apart <= WINDOW) & k_real[None, :], scores * log2_scale, float("-inf"))
    # A query that only fills the tile may see nothing; every real one sees itself.
    largest = tl.where(q_real, tl.max(scores, axis=1), 0.0)
    weights = exp2_approximately(scores - largest[:, None])
    whole = tl.where(q_real, tl.sum(weights, axis=1), 1.0)
    result = tl.dot(weights.to(dtype), v, input_precision=PRECISION) * (1.0 / whole)[:, None]
    tl.store(
        out + (frame * length + q_place[:, None]) * row + head * FEATURES + f[None, :],
        result.to(dtype),
        mask=q_mask,
    )


@torch.library.custom_op("medsora::norm", mutates_args=())
def norm(
    x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """LayerNorm(x)·(1 + scale) + shift of x (B, n, l, d), shift and scale (B or 1, n or 1, 1, d)."""
    return _add_norm(x, None, None, None, shift, scale, weight, bias, eps)[1]


@torch.library.custom_op("medsora::add_norm", mutates_args=())
def add_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    mean_square: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + gate·branch, and `norm` of that; `mean_square` as `gated_scan` gives it."""
    return _add_norm(x, branch, gate, mean_square, shift, scale, weight, bias, eps)


@torch.library.custom_op("medsora::gated_sum", mutates_args=())
def gated_sum(height: Tensor, gate_height: Tensor, width: Tensor, gate_width: Tensor) -> Tensor:
    """height·σ(gate_height) + width·σ(gate_width), all of one shape."""
    out = torch.empty_like(height, memory_format=torch.contiguous_format)
    parts = (part.contiguous() for part in (height, gate_height, width, gate_width))
    unit = math.gcd(out.numel(), UNIT)
    with on(out.device):
        gated_sum_kernel[(triton.cdiv(out.numel(), ELEMENTS),)](
            *parts, out, out.numel() // unit, BLOCK=ELEMENTS, UNIT=unit
        )
    return out


@torch.library.custom_op("medsora::local_attention", mutates_args=())
def local_attention(qkv: Tensor, cos: Tensor, sin: Tensor, window: int) -> Tensor:
    """Rotary attention within ±window tokens: qkv (N, l, 3, heads, f) -> (N, l, heads, f).

    cos and sin are (2, l, f), of q and of k, in float32, the sines signed.
    """
    frames, length, _, heads, features = qkv.shape
    queries, keys = fitting_attention_tile(frames * heads, length, window, qkv.device)
    tiles = triton.cdiv(length, queries)
    out = qkv.new_empty(frames, length, heads, features)
    with on(qkv.device):
        local_attention_kernel[(frames * tiles, heads)](
            qkv.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            out,
            length,
            tiles,
            1 / math.sqrt(features) / math.log(2),
            HEADS=heads,
            FEATURES=features,
            BLOCK_F=max(16, triton.next_power_of_2(features)),
            BLOCK_HALF=max(16, triton.next_power_of_2(features // 2)),
            WINDOW=window,
            QUERIES=queries,
            KEYS=keys,
            BEFORE=window if tiles > 1 else 0,
            num_warps=attention_warps(qkv.dtype, before_hopper=before_hopper(qkv.device)),
        )
    return out


@norm.register_fake
def _(x, shift, scale, weight, bias, eps) -> Tensor:
    return x.new_empty(x.shape)


@add_norm.register_fake
def _(x, branch, gate, mean_square, shift, scale, weight, bias, eps) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@gated_sum.register_fake
def _(height, gate_height, width, gate_width) -> Tensor:
    return torch.empty_like(height, memory_format=torch.contiguous_format)


@local_attention.register_fake
def _(qkv, cos, sin, window) -> Tensor:
    frames, length, _, heads, features = qkv.shape
    return qkv.new_empty(frames, length, heads, features)


@register_flop_formula(torch.ops.medsora.local_attention)
def _flops(qkv_shape: torch.Size, _cos: torch.Size, _sin: torch.Size, window: int, **__) -> int:
    """FLOPs of local attention by the tiles used on Hopper: two products, scores and weighted values."""
    frames, length, _, heads, features = qkv_shape
    queries, keys = attention_tile(length, window)
    return 4 * frames * heads * -(-length // queries) * queries * keys * features


def _add_norm(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean_square: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    modulations = (shift, scale) if gate is None else (gate, shift, scale)
    if {modulation.shape for modulation in modulations} != {shift.shape}:
        raise ValueError("gate, shift and scale must be of one shape.")
    if (weight is None) != (bias is None):
        raise ValueError("a norm has weight and bias or neither.")
    x = x.contiguous()
    batch, frames, length, width = x.shape
    if {modulation.stride() for modulation in modulations} != {shift.stride()} or shift.stride(-1) != 1:
        modulations = tuple(modulation.contiguous() for modulation in modulations)
    sample_stride, frame_stride = (
        0 if modulations[0].shape[axis] == 1 else modulations[0].stride(axis) for axis in (0, 1)
    )
    total = torch.empty_like(x) if branch is not None else x
    shares = 0 if mean_square is None else len(mean_square)
    out = torch.empty_like(x)
    with on(x.device):
        add_norm_kernel[(batch * frames * length,)](
            x,
            x if branch is None else branch.contiguous(),
            x if mean_square is None else mean_square.contiguous(),
            *(modulations if gate is not None else (x, *modulations)),
            x if weight is None else weight,
            x if bias is None else bias,
            total,
            out,
            sample_stride,
            frame_stride,
            frames,
            length,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            ADDS=branch is not None,
            AFFINE=weight is not None,
            SHARES=shares,
            BLOCK_SHARES=triton.next_power_of_2(max(1, shares)),
            num_warps=4 if width <= 1024 else 8,
        )
    return total, out
