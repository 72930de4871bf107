"""Forward kernels: the scan of every order, then gate, norm and the sum over an axis's orders.

The scan writes y of each order at its token's index, so nothing is rearranged in memory; no state is
written where a sequence fits a tile. The norm spans all heads of a token, which different programs hold: it
follows in a kernel of its own that reads every value once.
"""

import triton
import triton.language as tl

from medsora.kernels.fused.ops import (
    PRECISION,
    SIZES,
    convolve,
    convolve_BC,
    decay_between,
    decay_to_end,
    finite_or_nan,
    log_decay_reached,
    masked_silu,
    sigmoid,
    softplus,
    tile_steps,
)


@triton.jit(do_not_specialize=SIZES)
def scan_forward(
    zxbcdt,  # (batch, tokens, 2*DI + 2*D_STATE + HEADS), any strides but 1 along the last
    orders,  # (orders, sequences, steps) int32 token numbers
    conv_weight,
    conv_bias,
    dt_bias,
    A_log,
    D,
    y,  # (orders, batch, tokens, DI), written
    states,  # (orders, batch, sequences, HEADS, chunks, D_STATE, HEADDIM) float32, written if KEEP_STATES
    batch_stride,
    token_stride,
    batches,
    sequences,
    steps,
    tiles,
    chunks,
    HEADS: tl.constexpr,
    HEADDIM: tl.constexpr,
    SPLIT: tl.constexpr,  # so many heads share Δ, A and D: they are one whose channels were too many at once
    D_STATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICE: tl.constexpr,  # of BLOCK_N that is held at once: all of it if CHUNKED
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNKED: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    KEEP_STATES: tl.constexpr,
):
    """One program: one tile (or one long sequence), one order, HEADS_AT_ONCE heads, which share B and C."""
    DI: tl.constexpr = HEADS * HEADDIM
    HEAD_BLOCKS: tl.constexpr = HEADS // HEADS_AT_ONCE
    dtype = zxbcdt.dtype.element_ty
    program = tl.program_id(0)
    order_index = tl.program_id(1).to(tl.int64)
    head_block = program % HEAD_BLOCKS
    tile = (program // HEAD_BLOCKS) % tiles
    batch = (program // HEAD_BLOCKS // tiles).to(tl.int64)

    token_count = sequences * steps
    order = orders + order_index * token_count
    tokens = zxbcdt + batch * batch_stride
    out = y + (order_index * batches + batch) * token_count * DI
    p = tl.arange(0, HEADDIM)
    if CHUNKED:
        state = tl.zeros((BLOCK_N, HEADDIM), dtype=tl.float32)

    for chunk in range(chunks):
        position, step, inside, past, earlier = tile_steps(tile, chunk, sequences, steps, Q, PACKED, CHUNKED)
        token = tl.load(order + position, mask=inside, other=0).to(tl.int64)
        CB = tl.zeros((Q, Q), dtype=tl.float32)
        for part in tl.static_range(BLOCK_N // SLICE):
            n = part * SLICE + tl.arange(0, SLICE)
            B, C = convolve_BC(
                tokens + DI,
                token_stride,
                order,
                position,
                step,
                inside,
                n,
                conv_weight,
                conv_bias,
                DI,
                D_STATE,
                WIDTH,
            )
            B = masked_silu(B, inside).to(dtype)
            C = masked_silu(C, inside).to(dtype)
            CB += tl.dot(C, tl.trans(B), input_precision=PRECISION)

        for i in range(HEADS_AT_ONCE):
            head = head_block * HEADS_AT_ONCE + i
            whole = head // SPLIT
            raw = tl.load(
                tokens + token * token_stride + 2 * DI + 2 * D_STATE + whole, mask=inside, other=0.0
            )
            dt = softplus(raw.to(tl.float32) + tl.load(dt_bias + whole).to(tl.float32))
            columns = head * HEADDIM + p
            x = convolve(
                tokens + DI,
                token_stride,
                order,
                position,
                step,
                inside,
                columns,
                columns < DI,
                conv_weight,
                conv_bias,
                WIDTH,
            )
            x = masked_silu(x, inside)
            x, dt = finite_or_nan(x, tl.where(inside, dt, 0.0))

            decay = dt * -tl.exp(tl.load(A_log + whole).to(tl.float32))
            kernel = tl.where(past, decay_between(decay, past, earlier) * dt[None, :] * CB, 0.0)
            result = tl.dot(kernel.to(dtype), x.to(dtype), input_precision=PRECISION)
            result += tl.load(D + whole).to(tl.float32) * x
            if CHUNKED:
                if KEEP_STATES:
                    index = ((order_index * batches + batch) * sequences + tile) * HEADS + head
                    kept = states + (index * chunks + chunk) * D_STATE * HEADDIM
                    tl.store(kept + n[:, None] * HEADDIM + p[None, :], state, mask=(n < D_STATE)[:, None])
                carried = tl.dot(C, state.to(dtype), input_precision=PRECISION)
                result += tl.exp(log_decay_reached(decay, past))[:, None] * carried
                total = tl.sum(decay)
                to_end = decay_to_end(decay, earlier) * dt
                added = tl.dot(tl.trans(B), (x * to_end[:, None]).to(dtype), input_precision=PRECISION)
                state = tl.exp(total) * state + added
            tl.store(
                out + token[:, None] * DI + columns[None, :],
                result.to(y.dtype.element_ty),
                mask=inside[:, None],
            )


@triton.jit(do_not_specialize=SIZES)
def norm_forward(
    zxbcdt,
    y,  # (axes*DIRECTIONS, rows, DI), rows = batch*tokens
    norm_weight,
    out,  # (axes, rows, DI), written
    batch_stride,
    token_stride,
    token_count,
    rows,
    eps,
    DI: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """One program: one token of one axis. RMSNorm(y * silu(z)), summed over DIRECTIONS orders."""
    row = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    exists = d < DI
    token = zxbcdt + (row // token_count) * batch_stride + (row % token_count) * token_stride
    z = tl.load(token + d, mask=exists, other=0.0).to(tl.float32)
    gate = z * sigmoid(z)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for order_index in tl.static_range(DIRECTIONS):
        value = tl.load(y + ((axis * DIRECTIONS + order_index) * rows + row) * DI + d, mask=exists, other=0.0)
        gated = value.to(tl.float32) * gate
        total += gated / tl.sqrt(tl.sum(gated * gated) / DI + eps)
    weight = tl.load(norm_weight + d, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + (axis * rows + row) * DI + d, (total * weight).to(out.dtype.element_ty), mask=exists)
