"""Pieces that the forward and the backward kernels share: positions along a tile, convolution, SiLU and Δ.

A tile is a block of Q steps that one program computes at once. Short sequences are packed, several whole ones
to a tile, and masked apart; a long one is cut into chunks of Q steps that its program visits in turn.
"""

import triton
import triton.language as tl

# Of products of float32: three of TF32 each, as exact as float32 to the last bits. "ieee" leaves the tensor
# cores and makes so much code of these tiles that compiling takes minutes and registers spill.
PRECISION = tl.constexpr("tf32x3")

# Sizes that differ from batch to batch and from clip to clip: no kernel is compiled for one of them alone.
SIZES = (
    "batches",
    "sequences",
    "steps",
    "tiles",
    "chunks",
    "token_count",
    "rows",
    "rows_per_program",
    "blocks_per_program",
)


@triton.jit
def sigmoid(x):
    """σ(x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    """x·σ(x)."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of SiLU."""
    gate = sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), right to the last bits also where it is tiny: log(1 + e) as 2*atanh(e / (2 + e))."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    tail = q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q / 13)))))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + tail)


@triton.jit
def tile_steps(tile, chunk, sequences, steps, Q: tl.constexpr, PACKED: tl.constexpr, CHUNKED: tl.constexpr):
    """Rows of a tile: position in the order, step in its sequence, whether it exists, and which rows it sees.

    `past` counts a row itself, `earlier` does not.
    Packed: the tile's PACKED whole sequences follow one another. Chunked: Q steps of sequence `tile`.
    """
    rows = tl.arange(0, Q)
    if CHUNKED:
        step = chunk * Q + rows
        position = tile * steps + step
        inside = step < steps
        past = rows[:, None] >= rows[None, :]
    else:
        step = rows % steps
        position = tile * PACKED * steps + rows
        inside = (rows < PACKED * steps) & (position < sequences * steps)
        line = rows // steps
        past = (rows[:, None] >= rows[None, :]) & (line[:, None] == line[None, :])
    earlier = past & (rows[:, None] != rows[None, :])
    return position, step, inside, past, earlier


@triton.jit
def convolve(
    tokens, token_stride, order, position, step, inside, columns, exists, weight, bias, WIDTH: tl.constexpr
):
    """Causal depth-wise convolution in scan order, before SiLU: (Q, columns) in float32.

    Every tap gathers its own tokens; their rows are in the cache after the first. `tokens` points at the
    convolved part of the sequence's batch element, `order` at its table of token numbers.
    """
    total = tl.load(bias + columns, mask=exists, other=0.0).to(tl.float32)[None, :]
    for lag in tl.static_range(WIDTH):
        seen = inside & (step >= lag)
        token = tl.load(order + position - lag, mask=seen, other=0).to(tl.int64)
        tap = tl.load(weight + columns * WIDTH + (WIDTH - 1 - lag), mask=exists, other=0.0).to(tl.float32)
        value = tl.load(
            tokens + token[:, None] * token_stride + columns[None, :],
            mask=seen[:, None] & exists[None, :],
            other=0.0,
        )
        total += value.to(tl.float32) * tap[None, :]
    return total


@triton.jit
def convolve_BC(
    tokens,
    token_stride,
    order,
    position,
    step,
    inside,
    n,
    weight,
    bias,
    DI: tl.constexpr,
    D_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """State columns n of B and of C before SiLU."""
    exists = n < D_STATE
    at = DI + n
    B = convolve(tokens, token_stride, order, position, step, inside, at, exists, weight, bias, WIDTH)
    at = DI + D_STATE + n
    C = convolve(tokens, token_stride, order, position, step, inside, at, exists, weight, bias, WIDTH)
    return B, C


@triton.jit
def masked_silu(before, inside):
    """SiLU of the rows that exist, 0 elsewhere."""
    return tl.where(inside[:, None], silu(before), 0.0)


@triton.jit
def finite_or_nan(x, dt):
    """x (Q, columns) with 0 for what is not finite, and dt (Q,) with NaN in such rows.

    A product multiplies what a row must not see by 0, which NaN survives; through dt it reaches later rows
    only.
    """
    nothing = x - x
    return tl.where(nothing == 0.0, x, 0.0), dt + tl.sum(nothing, axis=1)


@triton.jit
def log_decay_reached(decay, past):
    """Sum of ΔA from the start of each row's sequence up to and with the row."""
    return tl.sum(tl.where(past, decay[None, :], 0.0), axis=1)


@triton.jit
def decay_between(decay, past, earlier):
    """exp of the sum of ΔA after column s up to row t, 0 where t cannot see s. No exponent is positive.

    Each pair adds its own steps: differences of sums from the start lose their digits after large steps.
    """
    after = tl.cumsum(tl.where(earlier, decay[:, None], 0.0), axis=0)
    return tl.where(past, tl.exp(after), 0.0)


@triton.jit
def decay_to_end(decay, earlier):
    """exp of the sum of ΔA after each row of a chunk: (Q,)."""
    return tl.exp(tl.sum(tl.where(earlier, decay[:, None], 0.0), axis=0))
