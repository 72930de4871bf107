"""Pieces that the forward and the backward kernels share: positions along a tile, decays, SiLU and Δ.

A tile is a block of Q steps that one program computes at once. Short sequences are packed, several whole ones
to a tile, and masked apart; a long one is cut into chunks of Q steps that its program visits in turn.
"""

import triton
import triton.language as tl

from medsora.kernels.fused.plan import interpreted

# Precision of float32 products: three TF32 products each, exact to float32's last bits. "ieee" does not use
# tensor cores and generates so much code for these tiles that compiling takes minutes and registers spill.
PRECISION = tl.constexpr("tf32x3")

# Where sums of ΔA are subtracted (bf16, float16), a step's ΔA is at least this: e^-32 is negligible, and
# the sums of a tile's 64 steps stay right to 2e-4.
MIN_STEP = tl.constexpr(-32.0)
LOG2_E = tl.constexpr(1.4426950408889634)
MAX_EXPONENT = tl.constexpr(64.0)  # 2^64·0 is 0: masked entries vanish without a mask
INTERPRETED = tl.constexpr(interpreted())

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
def exp2_approximately(x):
    """2^x within 2 units of the last digit; 0 where it is no normal number."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def at_most(x, largest):
    """The smaller one, and `largest` where x is NaN, which Triton 3.6's interpreter would return."""
    if INTERPRETED:
        return tl.where(x < largest, x, largest)
    return tl.minimum(x, largest)


@triton.jit
def sigmoid_approximately(x):
    """σ(x) within a few units of float32's last digit: two instructions, not twelve."""
    above = 1.0 + exp2_approximately(x * -LOG2_E)
    if INTERPRETED:
        return 1.0 / above
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [above], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def silu(x, EXACT: tl.constexpr):
    """x·σ(x)."""
    if EXACT:
        return x * sigmoid(x)
    return x * sigmoid_approximately(x)


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
    """Rows of a tile: position in the order, whether it exists, and which rows it sees.

    `past` counts a row itself, `earlier` does not.
    Packed: the tile's PACKED whole sequences follow one another. Chunked: Q steps of sequence `tile`.
    """
    rows = tl.arange(0, Q)
    past = rows[:, None] >= rows[None, :]
    if CHUNKED:
        position = tile * steps + chunk * Q + rows
        inside = chunk * Q + rows < steps
    else:
        position = tile * PACKED * steps + rows
        inside = (rows < PACKED * steps) & (position < sequences * steps)
        if PACKED > 1:
            line = rows * ((65536 + steps - 1) // steps) >> 16  # rows // steps: one division, not one per row
            past = past & (line[:, None] == line[None, :])
    earlier = past & (rows[:, None] != rows[None, :])
    return position, inside, past, earlier


@triton.jit
def read_rows(convolved, row, inside, columns, exists, CHANNELS: tl.constexpr):
    """Columns of the convolved tokens, 0 for rows that do not exist: (Q, columns)."""
    mask = inside[:, None] & exists[None, :]
    return tl.load(convolved + row[:, None] * CHANNELS + columns[None, :], mask=mask, other=0.0)


@triton.jit
def activated(values, ACTIVATED: tl.constexpr, EXACT: tl.constexpr):
    """SiLU of values, unless they went through it before they were stored."""
    if ACTIVATED:
        return values
    return silu(values.to(tl.float32), EXACT).to(values.dtype)


@triton.jit
def log2_reached(decay, past, PACKED: tl.constexpr):
    """Sum of ΔA from the start of each row's sequence to the row, which counts, and of all rows; base 2."""
    step = tl.maximum(decay, MIN_STEP) * LOG2_E + (decay - decay)  # NaN stays NaN
    reached = tl.cumsum(step) if PACKED == 1 else tl.sum(tl.where(past, step[None, :], 0.0), axis=1)
    return reached, tl.sum(step)


@triton.jit
def decay_between(decay, past, earlier, PACKED: tl.constexpr, EXACT: tl.constexpr):
    """exp of the sum of ΔA after column s up to row t, 0 where t cannot see s. No exponent is positive.

    EXACT: each pair adds its own steps, for differences of sums lose their digits after large steps.
    """
    if EXACT:
        between = tl.exp(tl.cumsum(tl.where(earlier, decay[:, None], 0.0), axis=0))
    else:
        reached, _ = log2_reached(decay, past, PACKED)
        between = exp2_approximately(reached[:, None] - reached[None, :])
    return tl.where(past, between, 0.0)


@triton.jit
def decay_of_chunk(decay, past, earlier, EXACT: tl.constexpr):
    """exp of sums of ΔA: from the start up to and with each row, after each row to the end, over all rows."""
    if EXACT:
        reached = tl.sum(tl.where(past, decay[None, :], 0.0), axis=1)
        left = tl.sum(tl.where(earlier, decay[:, None], 0.0), axis=0)
        return tl.exp(reached), tl.exp(left), tl.exp(tl.sum(decay))
    else:
        reached, total = log2_reached(decay, past, 1)
        left = total - reached
        return exp2_approximately(reached), exp2_approximately(left), exp2_approximately(total)
