"""Backward kernels: norm, scan, convolution. What the forward computed is computed again, not stored.

Each kernel writes every gradient once. What has to be added up from several programs goes through partial
sums: there are no atomics, and the result is the same on every run.
"""

import triton
import triton.language as tl

from medsora.kernels.fused.ops import (
    PRECISION,
    SIZES,
    activated,
    decay_between,
    decay_of_chunk,
    read_rows,
    sigmoid,
    silu_slope,
    softplus,
    tile_steps,
)


@triton.jit(do_not_specialize=SIZES)
def norm_backward(
    zxbcdt,
    y,  # (axes*DIRECTIONS, rows, DI): read as y, overwritten with its gradient
    norm_weight,
    grad_out,  # (axes, rows, DI)
    grad_zxbcdt,  # (rows, features): its z part is written
    grad_weight,  # (programs, DI) float32, partial sums, written
    batch_stride,
    token_stride,
    token_count,
    rows,
    rows_per_program,
    features,
    eps,
    DI: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AXES: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """One program: a run of tokens in all orders."""
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    weight = tl.load(norm_weight + d, mask=d < DI, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for i in range(rows_per_program):
        row = program * rows_per_program + i
        exists = (d < DI) & (row < rows)
        token = zxbcdt + (row // token_count) * batch_stride + (row % token_count) * token_stride
        z = tl.load(token + d, mask=exists, other=0.0).to(tl.float32)
        gate = z * sigmoid(z)
        grad_gate = tl.zeros((BLOCK_D,), dtype=tl.float32)
        for axis in tl.static_range(AXES):
            above = tl.load(grad_out + (axis * rows + row) * DI + d, mask=exists, other=0.0).to(tl.float32)
            for order_index in tl.static_range(DIRECTIONS):
                pointer = y + ((axis * DIRECTIONS + order_index) * rows + row) * DI + d
                value = tl.load(pointer, mask=exists, other=0.0).to(tl.float32)
                gated = value * gate
                scale = 1.0 / tl.sqrt(tl.sum(gated * gated) / DI + eps)
                normed = gated * scale
                weight_sum += above * normed
                along = tl.sum(above * weight * normed) / DI
                grad_gated = scale * (above * weight - normed * along)
                grad_gate += grad_gated * value
                tl.store(pointer, (grad_gated * gate).to(y.dtype.element_ty), mask=exists)
        grad_z = grad_gate * silu_slope(z)
        tl.store(grad_zxbcdt + row * features + d, grad_z.to(grad_zxbcdt.dtype.element_ty), mask=exists)
    tl.store(grad_weight + program * DI + d, weight_sum, mask=d < DI)


@triton.jit(do_not_specialize=SIZES)
def scan_backward(
    zxbcdt,
    convolved,  # as conv_forward wrote it, before SiLU
    orders,
    dt_bias,
    A_log,
    D,
    grad_y,  # (orders, batch, tokens, DI)
    states,  # entering each chunk, as scan_forward kept them; unused where a tile holds whole sequences
    inverse_orders,  # (orders, tokens) int32, written: token -> position in the order
    grad_conv,  # written: (orders, batch, tokens, DI) of x, then (blocks, orders, batch, tokens, 2*D_STATE)
    grad_dt,  # (orders, batch, tokens, HEADS) float32, written: before bias and softplus
    grad_heads,  # (orders, batch, tiles, chunks, 3, HEADS) float32, written: sums for dt_bias, A_log, D
    batch_stride,
    token_stride,
    batches,
    sequences,
    steps,
    tiles,
    chunks,
    HEADS: tl.constexpr,
    HEADDIM: tl.constexpr,
    SPLIT: tl.constexpr,  # so many heads share Δ, A and D, whose gradients are theirs together
    D_STATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICE: tl.constexpr,  # part of BLOCK_N that is held at once: all of it if CHUNKED
    Q: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNKED: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One program as in scan_forward; chunks are visited from the last to the first."""
    DI: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = DI + 2 * D_STATE
    HEAD_BLOCKS: tl.constexpr = HEADS // HEADS_AT_ONCE
    dtype = zxbcdt.dtype.element_ty
    program = tl.program_id(0)
    order_index = tl.program_id(1).to(tl.int64)
    order_count = tl.num_programs(1).to(tl.int64)
    head_block = program % HEAD_BLOCKS
    tile = (program // HEAD_BLOCKS) % tiles
    batch = (program // HEAD_BLOCKS // tiles).to(tl.int64)

    token_count = sequences * steps
    order = orders + order_index * token_count
    tokens = zxbcdt + batch * batch_stride
    first_row = (order_index * batches + batch) * token_count
    row_count = order_count * batches * token_count
    grad_x = grad_conv + first_row * DI
    grad_BC = grad_conv + row_count * DI + (head_block * row_count + first_row) * 2 * D_STATE
    p = tl.arange(0, HEADDIM)
    if CHUNKED:
        grad_state = tl.zeros((BLOCK_N, HEADDIM), dtype=tl.float32)

    for visited in range(chunks if CHUNKED else 1):
        chunk = chunks - 1 - visited
        position, inside, past, earlier = tile_steps(tile, chunk, sequences, steps, Q, PACKED, CHUNKED)
        token = tl.load(order + position, mask=inside, other=0).to(tl.int64)
        row = first_row + position
        first = inside & (batch == 0) & (head_block == 0)
        tl.store(inverse_orders + order_index * token_count + token, position, mask=first)
        CB = tl.zeros((Q, Q), dtype=tl.float32)
        for part in tl.static_range(BLOCK_N // SLICE):
            n = part * SLICE + tl.arange(0, SLICE)
            B = read_rows(convolved, row, inside, DI + n, n < D_STATE, CHANNELS)
            C = read_rows(convolved, row, inside, DI + D_STATE + n, n < D_STATE, CHANNELS)
            B = activated(B, False, EXACT)
            C = activated(C, False, EXACT)
            CB += tl.dot(C, tl.trans(B), input_precision=PRECISION)
        grad_CB = tl.zeros((Q, Q), dtype=tl.float32)
        if CHUNKED:
            grad_B_state = tl.zeros((Q, BLOCK_N), dtype=tl.float32)
            grad_C_state = tl.zeros((Q, BLOCK_N), dtype=tl.float32)

        for i in range(HEADS_AT_ONCE):
            head = head_block * HEADS_AT_ONCE + i
            whole = head // SPLIT
            raw = tl.load(
                tokens + token * token_stride + 2 * DI + 2 * D_STATE + whole, mask=inside, other=0.0
            )
            raw = raw.to(tl.float32) + tl.load(dt_bias + whole).to(tl.float32)
            dt = tl.where(inside, softplus(raw), 0.0)
            A = -tl.exp(tl.load(A_log + whole).to(tl.float32))
            decay = dt * A
            between = decay_between(decay, past, earlier, PACKED, EXACT)
            kernel = between * dt[None, :] * CB

            columns = head * HEADDIM + p
            x_before = read_rows(convolved, row, inside, columns, columns < DI, CHANNELS)
            x = activated(x_before, False, EXACT)
            above = tl.load(
                grad_y + (first_row + token[:, None]) * DI + columns[None, :], mask=inside[:, None], other=0.0
            )

            grad_kernel = between * tl.dot(above, tl.trans(x), input_precision=PRECISION)
            grad_CB += grad_kernel * dt[None, :]
            through_dt = grad_kernel * CB
            grad_delta = tl.sum(through_dt, axis=0)
            # A step fades what earlier rows hand to it and to later ones. Those are added, not all and then
            # the others taken away, which would leave little but rounding.
            if EXACT:
                through_step = tl.cumsum(through_dt, axis=0, reverse=True) * dt[None, :]
            else:
                later = tl.trans(tl.where(past, 1.0, 0.0))
                through_step = tl.dot(later, through_dt, input_precision="tf32") * dt[None, :]
            above_exact = above.to(tl.float32)
            grad_value = tl.dot(tl.trans(kernel.to(dtype)), above, input_precision=PRECISION)
            grad_value += tl.load(D + whole).to(tl.float32) * above_exact

            if CHUNKED:
                index = ((order_index * batches + batch) * sequences + tile) * HEADS + head
                kept = states + (index * chunks + chunk) * D_STATE * HEADDIM
                state = tl.load(
                    kept + n[:, None] * HEADDIM + p[None, :], mask=(n < D_STATE)[:, None], other=0.0
                )
                from_start, left, throughout = decay_of_chunk(decay, past, earlier, EXACT)
                to_end = left * dt
                carried = tl.dot(C, state.to(dtype), input_precision=PRECISION)
                grad_from_start = from_start * tl.sum(above_exact * carried, axis=1)
                arriving = (above_exact * from_start[:, None]).to(dtype)
                grad_C_state += tl.dot(arriving, tl.trans(state.to(dtype)), input_precision=PRECISION)

                leaving = tl.dot(B, grad_state.to(dtype), input_precision=PRECISION)
                grad_value += to_end[:, None] * leaving
                grad_left = tl.sum(x * leaving, axis=1)
                grad_delta += left * grad_left
                through_step += (to_end * grad_left)[None, :]
                grad_B_state += tl.dot(
                    (x * to_end[:, None]).to(dtype), tl.trans(grad_state.to(dtype)), input_precision=PRECISION
                )
                grad_total = throughout * tl.sum(state * grad_state)
                grad_state = throughout * grad_state + tl.dot(
                    tl.trans(C), arriving, input_precision=PRECISION
                )

            grad_decay = tl.sum(tl.where(earlier, through_step, 0.0), axis=1)
            if CHUNKED:
                grad_decay += grad_total + tl.sum(tl.where(past, grad_from_start[:, None], 0.0), axis=0)
            grad_raw = tl.where(inside, (grad_delta + A * grad_decay) * sigmoid(raw), 0.0)
            tl.store(grad_dt + (first_row + token) * HEADS + head, grad_raw, mask=inside)
            chunk_index = ((order_index * batches + batch) * tiles + tile) * chunks + chunk
            sums = grad_heads + chunk_index * 3 * HEADS + head
            tl.store(sums, tl.sum(grad_raw))
            tl.store(sums + HEADS, A * tl.sum(dt * grad_decay))
            tl.store(sums + 2 * HEADS, tl.sum(above_exact * x))
            tl.store(
                grad_x + token[:, None] * DI + columns[None, :],
                (grad_value * silu_slope(x_before.to(tl.float32))).to(grad_conv.dtype.element_ty),
                mask=inside[:, None],
            )

        for part in tl.static_range(BLOCK_N // SLICE):
            n = part * SLICE + tl.arange(0, SLICE)
            B_before = read_rows(convolved, row, inside, DI + n, n < D_STATE, CHANNELS)
            C_before = read_rows(convolved, row, inside, DI + D_STATE + n, n < D_STATE, CHANNELS)
            B = activated(B_before, False, EXACT)
            C = activated(C_before, False, EXACT)
            grad_B = tl.dot(tl.trans(grad_CB.to(dtype)), C, input_precision=PRECISION)
            grad_C = tl.dot(grad_CB.to(dtype), B, input_precision=PRECISION)
            if CHUNKED:
                grad_B += grad_B_state
                grad_C += grad_C_state
            target = grad_BC + token[:, None] * 2 * D_STATE + n[None, :]
            exists = inside[:, None] & (n < D_STATE)[None, :]
            grad_B *= silu_slope(B_before.to(tl.float32))
            grad_C *= silu_slope(C_before.to(tl.float32))
            tl.store(target, grad_B.to(grad_conv.dtype.element_ty), mask=exists)
            tl.store(target + D_STATE, grad_C.to(grad_conv.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def conv_backward(
    zxbcdt,
    orders,
    inverse_orders,
    conv_weight,
    grad_conv,  # as scan_backward wrote it: gradients before SiLU, each order's at its token's index
    grad_zxbcdt,  # (rows, features): its x, B, C part is written
    grad_taps,  # (programs, WIDTH + 1, DI + 2*D_STATE) float32, partial sums of taps and bias, written
    batch_stride,
    token_stride,
    token_count,
    steps,
    rows,
    blocks_per_program,
    features,
    DI: tl.constexpr,
    D_STATE: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
    ALL_ORDERS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: a run of tokens, BLOCK_C channels, all orders; gradients come from the steps after it."""
    CHANNELS: tl.constexpr = DI + 2 * D_STATE
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = columns < CHANNELS
    of_x = tl.program_id(1) * BLOCK_C < DI
    width = tl.where(of_x, DI, 2 * D_STATE)
    copies = tl.where(of_x, 1, HEAD_BLOCKS)
    row_count = tl.cast(rows, tl.int64)
    source = grad_conv + tl.where(of_x, 0, ALL_ORDERS * row_count * DI - DI)
    tap_row = tl.arange(0, TAP_ROWS)[:, None]
    tap_sum = tl.zeros((TAP_ROWS, BLOCK_C), dtype=tl.float32)

    for block in range(blocks_per_program):
        row = (program * blocks_per_program + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        inside = row < rows
        batch = row // token_count
        token = row % token_count
        here = zxbcdt + batch * batch_stride + token * token_stride + DI
        value = tl.load(here[:, None] + columns[None, :], mask=inside[:, None] & exists[None, :], other=0.0)
        value = value.to(tl.float32)
        grad = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
        for order_index in range(ALL_ORDERS):
            position = tl.load(inverse_orders + order_index * token_count + token, mask=inside, other=0)
            for lag in tl.static_range(WIDTH):
                later = inside & (position % steps + lag < steps)
                next_token = tl.load(orders + order_index * token_count + position + lag, mask=later, other=0)
                next_row = batch * token_count + next_token
                above = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
                for copy in range(copies):
                    start = (copy * ALL_ORDERS + order_index) * row_count
                    above += tl.load(
                        source + (start + next_row)[:, None] * width + columns[None, :],
                        mask=later[:, None] & exists[None, :],
                        other=0.0,
                    ).to(tl.float32)
                tap = tl.load(conv_weight + columns * WIDTH + (WIDTH - 1 - lag), mask=exists, other=0.0)
                grad += above * tap.to(tl.float32)[None, :]
                tap_sum += tl.where(tap_row == WIDTH - 1 - lag, tl.sum(above * value, axis=0)[None, :], 0.0)
                if lag == 0:
                    tap_sum += tl.where(tap_row == WIDTH, tl.sum(above, axis=0)[None, :], 0.0)
        tl.store(
            grad_zxbcdt + row[:, None] * features + DI + columns[None, :],
            grad.to(grad_zxbcdt.dtype.element_ty),
            mask=inside[:, None] & exists[None, :],
        )
    tl.store(
        grad_taps + (program * (WIDTH + 1) + tap_row) * CHANNELS + columns[None, :],
        tap_sum,
        mask=(tap_row <= WIDTH) & exists[None, :],
    )
