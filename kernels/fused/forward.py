"""Forward kernels: convolution and SiLU along every order, its scan, then gate, norm and the sum over orders.

What is convolved is written in scan order, so that all heads of a scan read B and C of one convolution. The
scan writes y of each order at its token's index, so nothing else is rearranged in memory; no state is
written where a sequence fits a tile. The norm spans all heads of a token, which different programs hold: it
follows in a kernel of its own that reads every value once.
"""

import triton
import triton.language as tl

from medsora.kernels.fused.ops import (
    MAX_EXPONENT,
    PRECISION,
    SIZES,
    activated,
    at_most,
    decay_between,
    decay_of_chunk,
    exp2_approximately,
    log2_reached,
    read_rows,
    silu,
    softplus,
    tile_steps,
)


@triton.jit
def in_a_row(parts):
    """1, 2 or 4 tensors (n,) element by element in turn: (n times their number,)."""
    if len(parts) == 1:
        return parts[0]
    elif len(parts) == 2:
        return tl.join(parts[0], parts[1]).reshape(2 * parts[0].shape[0])
    else:
        both = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        return both.reshape(4 * parts[0].shape[0])


@triton.jit(do_not_specialize=SIZES)
def conv_forward(
    zxbcdt,  # (batch, tokens, 2*DI + 2*D_STATE + heads), any strides but 1 along the last
    orders,  # (orders, tokens) int32 token numbers, sequences in a row
    conv_weight,
    conv_bias,
    dt_bias,
    convolved,  # (orders, batch, tokens, DI + 2*D_STATE) in scan order, written
    delta,  # (orders, HEADS, batch, tokens) float32 in scan order, written
    batch_stride,
    token_stride,
    token_count,
    steps,
    rows,
    HEADS: tl.constexpr,
    HEADDIM: tl.constexpr,
    SPLIT: tl.constexpr,
    D_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,  # runs of GROUP steps in a row; GROUP divides `steps`
    GROUP: tl.constexpr,
    ACTIVATED: tl.constexpr,  # whether SiLU is applied
    EXACT: tl.constexpr,
):
    """One program: GROUPS·GROUP steps of one order of a sample, the channels of one head or as many of B, C.

    Causal depth-wise convolution. The steps of a run share what their taps read. With a head's channels goes
    its Δ. Where they are not finite they become 0 and Δ NaN: a product multiplies what a row must not see by
    0, which NaN survives; through Δ it reaches later rows only.
    """
    DI: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = DI + 2 * D_STATE
    tiles = tl.cdiv(token_count, GROUPS * GROUP)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles) * GROUPS * GROUP
    first = start + tl.arange(0, GROUPS) * GROUP
    head = tl.program_id(1)
    order_index = tl.program_id(2).to(tl.int64)
    columns = head * HEADDIM + tl.arange(0, HEADDIM)
    exists = columns < CHANNELS
    inside = first < token_count
    row = order_index * rows + batch * token_count + first
    tokens = zxbcdt + batch * batch_stride
    order = orders + order_index * token_count

    values, taps, poisons = (), (), ()
    for i in tl.static_range(WIDTH):
        tap = tl.load(conv_weight + columns * WIDTH + i, mask=exists, other=0.0)
        taps += (tap.to(tl.float32)[None, :],)
    for i in tl.static_range(WIDTH - 1 + GROUP):
        seen = inside & (first % steps + i >= WIDTH - 1)
        token = tl.load(order + first + (i - WIDTH + 1), mask=seen, other=0).to(tl.int64)
        value = tl.load(
            (tokens + token * token_stride)[:, None] + DI + columns[None, :],
            mask=seen[:, None] & exists[None, :],
            other=0.0,
        )
        values += (value.to(tl.float32),)
    bias = tl.load(conv_bias + columns, mask=exists, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(GROUP):
        total = bias
        for lag in tl.static_range(WIDTH):
            total += values[WIDTH - 1 + i - lag] * taps[WIDTH - 1 - lag]
        if ACTIVATED:
            total = silu(total, EXACT)
        if head < HEADS:
            poison = tl.sum(total * 0.0, axis=1)
            total = tl.where((poison == 0.0)[:, None], total, 0.0)
        else:
            poison = tl.zeros((GROUPS,), dtype=tl.float32)
        poisons += (poison,)
        tl.store(
            convolved + (row + i)[:, None] * CHANNELS + columns[None, :],
            total.to(convolved.dtype.element_ty),
            mask=inside[:, None] & exists[None, :],
        )
    if head < HEADS:
        whole = head // SPLIT
        position = start + tl.arange(0, GROUPS * GROUP)
        real = position < token_count
        of_token = tokens + tl.load(order + position, mask=real, other=0).to(tl.int64) * token_stride
        raw = tl.load(of_token + 2 * DI + 2 * D_STATE + whole, mask=real, other=0.0)
        dt = softplus(raw.to(tl.float32) + tl.load(dt_bias + whole).to(tl.float32))
        of_head = delta + (order_index * HEADS + head) * rows + batch * token_count
        tl.store(of_head + position, dt + in_a_row(poisons), mask=real)


@triton.jit(do_not_specialize=SIZES)
def scan_forward(
    convolved,  # as conv_forward wrote it, and delta
    delta,
    orders,
    A_log,
    D,
    zxbcdt,  # as conv_forward read it; this and the next two are used if GATED
    norm_weight,
    mean_square,  # (HEADS, batch, tokens) float32, written: parts of the square of y's divisor
    y,  # (orders, batch, tokens, DI), written
    states,  # (orders, batch, sequences, HEADS, chunks, D_STATE, HEADDIM) float32, written if KEEP_STATES
    batch_stride,
    token_stride,
    batches,
    sequences,
    steps,
    tiles,
    chunks,
    eps,
    HEADS: tl.constexpr,
    HEADDIM: tl.constexpr,
    SPLIT: tl.constexpr,  # so many heads share Δ, A and D: they are one whose channels were too many at once
    D_STATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICE: tl.constexpr,  # part of BLOCK_N that is held at once: all of it if CHUNKED
    Q: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNKED: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    EXACT: tl.constexpr,
    ACTIVATED: tl.constexpr,
    KEEP_STATES: tl.constexpr,
    GATED: tl.constexpr,  # y is gated and weighted, and an RMS norm has only to divide it; for one order
):
    """One program: one tile (or one long sequence), one order, HEADS_AT_ONCE heads, which share B and C."""
    DI: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = DI + 2 * D_STATE
    HEAD_BLOCKS: tl.constexpr = HEADS // HEADS_AT_ONCE
    dtype = convolved.dtype.element_ty
    program = tl.program_id(0)
    order_index = tl.program_id(1).to(tl.int64)
    head_block = program % HEAD_BLOCKS
    tile = (program // HEAD_BLOCKS) % tiles
    batch = (program // HEAD_BLOCKS // tiles).to(tl.int64)

    token_count = sequences * steps
    row_count = batches.to(tl.int64) * token_count
    order = orders + order_index * token_count
    first_row = order_index * row_count + batch * token_count
    out = y + first_row * DI
    p = tl.arange(0, HEADDIM)
    if CHUNKED:
        state = tl.zeros((BLOCK_N, HEADDIM), dtype=tl.float32)

    for chunk in range(chunks if CHUNKED else 1):
        position, inside, past, earlier = tile_steps(tile, chunk, sequences, steps, Q, PACKED, CHUNKED)
        token = tl.load(order + position, mask=inside, other=0)
        row = first_row + position
        CB = tl.zeros((Q, Q), dtype=tl.float32)
        for part in tl.static_range(BLOCK_N // SLICE):
            n = part * SLICE + tl.arange(0, SLICE)
            B = read_rows(convolved, row, inside, DI + n, n < D_STATE, CHANNELS)
            C = read_rows(convolved, row, inside, DI + D_STATE + n, n < D_STATE, CHANNELS)
            B = activated(B, ACTIVATED, EXACT)
            C = activated(C, ACTIVATED, EXACT)
            CB += tl.dot(C, tl.trans(B), input_precision=PRECISION)
        CB = tl.where(past, CB, 0.0)

        for i in range(HEADS_AT_ONCE):
            head = head_block * HEADS_AT_ONCE + i
            whole = head // SPLIT
            columns = head * HEADDIM + p
            x = read_rows(convolved, row, inside, columns, columns < DI, CHANNELS)
            x = activated(x, ACTIVATED, EXACT)
            of_head = delta + (order_index * HEADS + head) * row_count + batch * token_count
            dt = tl.load(of_head + position, mask=inside, other=0.0)

            decay = dt * -tl.exp(tl.load(A_log + whole).to(tl.float32))
            skip = tl.load(D + whole).to(tl.float32)
            if EXACT:
                between = decay_between(decay, past, earlier, PACKED, EXACT)
                kernel = tl.where(past, between * dt[None, :] * CB, 0.0)
                own = skip
            else:
                reached, _ = log2_reached(decay, past, PACKED)
                exponent = reached[:, None] - (reached - tl.log2(dt))[None, :]
                kernel = exp2_approximately(at_most(exponent, MAX_EXPONENT)) * CB
                own = skip + (reached - reached)[:, None]  # NaN from a row that is not finite on
            kernel += tl.where(past & ~earlier, own, 0.0)
            result = tl.dot(kernel.to(dtype), x, input_precision=PRECISION)
            if CHUNKED:
                if KEEP_STATES:
                    index = ((order_index * batches + batch) * sequences + tile) * HEADS + head
                    kept = states + (index * chunks + chunk) * D_STATE * HEADDIM
                    tl.store(kept + n[:, None] * HEADDIM + p[None, :], state, mask=(n < D_STATE)[:, None])
                from_start, to_end, throughout = decay_of_chunk(decay, past, earlier, EXACT)
                carried = tl.dot(C, state.to(dtype), input_precision=PRECISION)
                result += from_start[:, None] * carried
                added = tl.dot(tl.trans(B), (x * (to_end * dt)[:, None]).to(dtype), input_precision=PRECISION)
                state = throughout * state + added
            if GATED:
                place = zxbcdt + batch * batch_stride + token.to(tl.int64) * token_stride
                z = tl.load(place[:, None] + columns[None, :], mask=inside[:, None], other=0.0)
                result *= silu(z.to(tl.float32), EXACT)
                share = tl.sum(result * result, axis=1) / DI + eps / HEADS
                of_tokens = mean_square + head * row_count + batch * token_count
                tl.store(of_tokens + token, share, mask=inside)
                result *= tl.load(norm_weight + columns).to(tl.float32)[None, :]
            tl.store(
                out + token.to(tl.int64)[:, None] * DI + columns[None, :],
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
    EXACT: tl.constexpr,
):
    """One program: one token of one axis. RMSNorm(y * silu(z)), summed over DIRECTIONS orders."""
    row = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    exists = d < DI
    token = zxbcdt + (row // token_count) * batch_stride + (row % token_count) * token_stride
    gate = silu(tl.load(token + d, mask=exists, other=0.0).to(tl.float32), EXACT)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for order_index in tl.static_range(DIRECTIONS):
        value = tl.load(y + ((axis * DIRECTIONS + order_index) * rows + row) * DI + d, mask=exists, other=0.0)
        gated = value.to(tl.float32) * gate
        total += gated * (1.0 / tl.sqrt(tl.sum(gated * gated) / DI + eps))
    weight = tl.load(norm_weight + d, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + (axis * rows + row) * DI + d, (total * weight).to(out.dtype.element_ty), mask=exists)
