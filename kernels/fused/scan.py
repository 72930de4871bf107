"""The fused scan as PyTorch operators: launch sizes, buffers, registration with autograd and torch.compile.

Forward: three launches (convolution along all orders; their scan; gate, norm and sum). Backward: convolution
and scan again, then norm, scan and convolution. Only the inputs are saved. Nothing synchronises with the host
and no launch depends on values, so both can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from medsora.kernels.fused import backward as triton_backward
from medsora.kernels.fused import forward as triton_forward
from medsora.kernels.fused import plan as fused_plan
from medsora.kernels.fused.plan import MAX_TILE_STEPS, chunked_tile, on, split_of_a_head

PROGRAMS_PER_PROCESSOR = 4  # minimum; below it, a program takes fewer heads
MAX_REGISTERS = 128  # per thread in a scan of short sequences: four programs fit a multiprocessor
FEW_STEPS, MANY_STEPS = (16, 4), (32, 2)  # steps and warps of a program of the convolution
MIN_GROUPS = 8  # runs of steps in a program of the convolution; steps of a run share what they read
MAX_PARTIAL_SUMS = 256  # rows of a buffer of partial sums of weight gradients
MAX_BACKWARD_BYTES = 2**31  # buffers of a backward pass; a batch that needs more goes through in parts


@dataclass(frozen=True)
class Launch:
    """Sizes of one scan and how it is cut into programs."""

    batches: int
    axes: int
    directions: int  # orders per axis
    sequences: int  # per order and batch element
    steps: int  # per sequence
    heads: int  # as programs see them: a head of many channels counts as `split`
    headdim: int
    split: int  # heads in a row that share Δ, A and D
    d_state: int
    width: int  # taps of the convolution
    tile: int  # steps that a program computes at once
    packed: int  # whole sequences in a tile
    chunks: int  # tiles that a program visits in turn
    heads_at_once: int  # heads of a program

    @property
    def d_inner(self) -> int:
        """Width of the scanned values."""
        return self.heads * self.headdim

    @property
    def all_orders(self) -> int:
        """Orders per block: axes times directions."""
        return self.axes * self.directions

    @property
    def tokens(self) -> int:
        """Tokens of one batch element."""
        return self.sequences * self.steps

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return self.batches * self.tokens

    @property
    def tiles(self) -> int:
        """Programs along an order of one batch element, per block of heads."""
        return -(-self.sequences // self.packed)

    @property
    def head_blocks(self) -> int:
        """Programs that share the heads of a tile."""
        return self.heads // self.heads_at_once

    @property
    def sequence_tiles(self) -> int:
        """Tiles along an order of one batch element, those that a program visits in turn included."""
        return self.tiles * self.chunks

    @property
    def channels(self) -> int:
        """Convolved channels: x, B and C."""
        return self.d_inner + 2 * self.d_state

    def backward_bytes(self, itemsize: int) -> int:
        """Bytes of a batch element in a backward pass: y, convolved tokens and their gradient, Δ, states."""
        values = self.d_inner + self.channels + self.d_inner + self.head_blocks * 2 * self.d_state
        states = self.sequence_tiles * self.d_state * self.d_inner * 4 if self.chunks > 1 else 0
        return self.all_orders * (self.tokens * (values * itemsize + 2 * self.heads * 4) + states)

    @property
    def grid(self) -> tuple[int, int]:
        """Programs of a launch: (batch elements x tiles x head blocks, orders)."""
        return self.batches * self.tiles * self.head_blocks, self.all_orders

    def constants(self, dtype: torch.dtype, *, backward: bool = False) -> dict[str, int | bool]:
        """Compile-time arguments that the two scan kernels share."""
        block_n = max(16, triton.next_power_of_2(self.d_state))
        exact = dtype == torch.float32
        spread = self.chunks > 1 or ((backward or exact) and self.tile > 32)
        limit = {} if spread or backward else {"maxnreg": MAX_REGISTERS}
        return limit | {
            "HEADS": self.heads,
            "HEADDIM": self.headdim,
            "SPLIT": self.split,
            "D_STATE": self.d_state,
            "BLOCK_N": block_n,
            "SLICE": block_n if self.chunks > 1 else min(32 if limit else 64, block_n),
            "Q": self.tile,
            "PACKED": self.packed,
            "CHUNKED": self.chunks > 1,
            "HEADS_AT_ONCE": self.heads_at_once,
            "EXACT": exact,
            "num_warps": 8 if spread else 4,
            "num_stages": 1,  # what a program loads is gathered and small: buffers would lower the occupancy
        }


def plan(
    zxbcdt: Tensor, conv_weight: Tensor, D: Tensor, norm_weight: Tensor, orders: Tensor, *, backward: bool
) -> Launch:
    """Cut a scan along orders (axes, k, S, l), or its backward pass, into programs of the current device."""
    axes, directions, sequences, steps = orders.shape
    gpu = fused_plan.gpu(zxbcdt.device)
    d_inner = norm_weight.shape[0]
    d_state = (conv_weight.shape[0] - d_inner) // 2
    split = split_of_a_head(d_inner // D.shape[0], d_state, steps, gpu.shared_bytes)
    heads = D.shape[0] * split
    if steps > MAX_TILE_STEPS:
        tile = chunked_tile(zxbcdt.dtype, backward=backward)
    else:
        tile = MAX_TILE_STEPS // 2 if steps <= MAX_TILE_STEPS // 2 else MAX_TILE_STEPS
    packed = max(1, tile // steps)
    chunks = -(-steps // tile)
    heads_at_once = 1
    if chunks == 1:
        programs = zxbcdt.shape[0] * -(-sequences // packed) * axes * directions * heads
        enough = PROGRAMS_PER_PROCESSOR * gpu.multiprocessors
        while heads % (2 * heads_at_once) == 0 and programs // (2 * heads_at_once) >= enough:
            heads_at_once *= 2
    return Launch(
        batches=zxbcdt.shape[0],
        axes=axes,
        directions=directions,
        sequences=sequences,
        steps=steps,
        heads=heads,
        headdim=d_inner // heads,
        split=split,
        d_state=d_state,
        width=conv_weight.shape[1],
        tile=tile,
        packed=packed,
        chunks=chunks,
        heads_at_once=heads_at_once,
    )


@torch.library.custom_op("medsora::scan", mutates_args=())
def fused_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    orders: Tensor,
    eps: float,
) -> Tensor:
    """(b, T, 2*d_inner + 2*N + heads) along int32 orders (axes, k, S, l) -> (axes, b, T, d_inner)."""
    with on(zxbcdt.device):
        launch = plan(zxbcdt, conv_weight, D, norm_weight, orders, backward=False)
        out = zxbcdt.new_empty(launch.axes, launch.batches, launch.tokens, launch.d_inner)
        y, *_ = _scan(launch, zxbcdt, orders, conv_weight, conv_bias, dt_bias, A_log, D, backward=False)
        triton_forward.norm_forward[(launch.rows, launch.axes)](
            zxbcdt,
            y,
            norm_weight,
            out,
            *zxbcdt.stride()[:2],
            launch.tokens,
            launch.rows,
            eps,
            DI=launch.d_inner,
            BLOCK_D=triton.next_power_of_2(launch.d_inner),
            DIRECTIONS=launch.directions,
            EXACT=zxbcdt.dtype == torch.float32,
        )
    return out


@torch.library.custom_op("medsora::gated_scan", mutates_args=())
def gated_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    orders: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`fused_scan` along one order, before its norm divides; forward only, for sampling.

    (b, T, d_inner), to be divided by the root of the sum of (parts, b, T) in float32.
    """
    if orders.shape[:2] != (1, 1):
        raise ValueError(f"one order is scanned, not {tuple(orders.shape[:2])}.")
    with on(zxbcdt.device):
        launch = plan(zxbcdt, conv_weight, D, norm_weight, orders, backward=False)
        mean_square = torch.empty(launch.heads, *zxbcdt.shape[:2], dtype=torch.float32, device=zxbcdt.device)
        norm = norm_weight, mean_square, eps
        y, *_ = _scan(
            launch, zxbcdt, orders, conv_weight, conv_bias, dt_bias, A_log, D, backward=False, norm=norm
        )
    return y[0], mean_square


@gated_scan.register_fake
def _(zxbcdt, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, orders, eps) -> tuple[Tensor, Tensor]:
    launch = plan(zxbcdt, conv_weight, D, norm_weight, orders, backward=False)
    return (
        zxbcdt.new_empty(*zxbcdt.shape[:2], norm_weight.shape[0]),
        zxbcdt.new_empty(launch.heads, *zxbcdt.shape[:2], dtype=torch.float32),
    )


@fused_scan.register_fake
def _(zxbcdt, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, orders, eps) -> Tensor:
    return zxbcdt.new_empty(orders.shape[0], *zxbcdt.shape[:2], norm_weight.shape[0])


@torch.library.custom_op("medsora::scan_backward", mutates_args=())
def fused_scan_backward(
    grad_out: Tensor,
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    orders: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by zxbcdt and the six weights, in this order."""
    weights = (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    if not len(zxbcdt):  # nothing to cut into programs
        return tuple(value.new_zeros(value.shape) for value in (zxbcdt, *weights))
    grad_zxbcdt = zxbcdt.new_empty(zxbcdt.shape)
    sums = []
    with on(zxbcdt.device):
        launch = plan(zxbcdt, conv_weight, D, norm_weight, orders, backward=True)
        at_once = max(1, MAX_BACKWARD_BYTES // launch.backward_bytes(zxbcdt.element_size()))
        for first in range(0, launch.batches, at_once):
            part = slice(first, first + at_once)
            above = grad_out[:, part].contiguous()
            sums.append(_backward_of_part(above, zxbcdt[part], weights, orders, eps, grad_zxbcdt[part]))
    grad_taps, grad_heads, grad_norm = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
    of_weights = (grad_taps[:-1].T.contiguous(), grad_taps[-1], *grad_heads, grad_norm)
    return grad_zxbcdt, *(
        grad.to(weight.dtype, copy=True) for grad, weight in zip(of_weights, weights, strict=True)
    )


def _backward_of_part(
    grad_out: Tensor,
    zxbcdt: Tensor,
    weights: tuple[Tensor, ...],
    orders: Tensor,
    eps: float,
    grad_zxbcdt: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill grad_zxbcdt; give the float32 gradients of taps and bias, of (dt_bias, A_log, D), of the norm."""
    conv_weight, _, *of_heads, norm_weight = weights
    launch = plan(zxbcdt, conv_weight, of_heads[-1], norm_weight, orders, backward=True)
    strides = zxbcdt.stride()[:2]
    channels, features = conv_weight.shape[0], zxbcdt.shape[2]
    exact = {"dtype": torch.float32, "device": zxbcdt.device}
    grad_conv = zxbcdt.new_empty(
        launch.all_orders * launch.rows * (launch.d_inner + launch.head_blocks * 2 * launch.d_state)
    )
    grad_dt = torch.empty(launch.all_orders, launch.rows, launch.heads, **exact)
    grad_heads = torch.empty(
        launch.all_orders * launch.batches * launch.sequence_tiles, 3, launch.heads, **exact
    )
    inverse_orders = orders.new_empty(launch.all_orders, launch.tokens)
    y, convolved, states = _scan(launch, zxbcdt, orders, *weights[:-1], backward=True)

    rows_each = -(-launch.rows // MAX_PARTIAL_SUMS)
    norm_programs = -(-launch.rows // rows_each)
    grad_norm = torch.empty(norm_programs, launch.d_inner, **exact)
    triton_backward.norm_backward[(norm_programs,)](
        zxbcdt,
        y,
        norm_weight,
        grad_out,
        grad_zxbcdt,
        grad_norm,
        *strides,
        launch.tokens,
        launch.rows,
        rows_each,
        features,
        eps,
        DI=launch.d_inner,
        BLOCK_D=triton.next_power_of_2(launch.d_inner),
        AXES=launch.axes,
        DIRECTIONS=launch.directions,
    )
    triton_backward.scan_backward[launch.grid](
        zxbcdt,
        convolved,
        orders,
        *of_heads,
        y,
        states,
        inverse_orders,
        grad_conv,
        grad_dt,
        grad_heads,
        *strides,
        launch.batches,
        launch.sequences,
        launch.steps,
        launch.tiles,
        launch.chunks,
        **launch.constants(zxbcdt.dtype, backward=True),
    )
    block_t, block_c = 32, min(64, launch.headdim)
    blocks = -(-launch.rows // block_t)
    blocks_each = -(-blocks // MAX_PARTIAL_SUMS)
    conv_programs = -(-blocks // blocks_each)
    grad_taps = torch.empty(conv_programs, launch.width + 1, channels, **exact)
    triton_backward.conv_backward[(conv_programs, -(-channels // block_c))](
        zxbcdt,
        orders,
        inverse_orders,
        conv_weight,
        grad_conv,
        grad_zxbcdt,
        grad_taps,
        *strides,
        launch.tokens,
        launch.steps,
        launch.rows,
        blocks_each,
        features,
        DI=launch.d_inner,
        D_STATE=launch.d_state,
        HEAD_BLOCKS=launch.head_blocks,
        ALL_ORDERS=launch.all_orders,
        WIDTH=launch.width,
        TAP_ROWS=triton.next_power_of_2(launch.width + 1),
        BLOCK_T=block_t,
        BLOCK_C=block_c,
    )
    whole = launch.heads // launch.split, launch.split
    grad_zxbcdt[..., -whole[0] :] = grad_dt.sum(0).view(*zxbcdt.shape[:2], *whole).sum(-1)
    return grad_taps.sum(0), grad_heads.sum(0).view(3, *whole).sum(-1), grad_norm.sum(0)


@fused_scan_backward.register_fake
def _(grad_out, zxbcdt, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, orders, eps):
    inputs = (zxbcdt, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    return tuple(value.new_empty(value.shape) for value in inputs)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return *fused_scan_backward(grad_out, *ctx.saved_tensors, ctx.eps), None, None


fused_scan.register_autograd(_backward, setup_context=_save)


def _scan(
    launch: Launch,
    zxbcdt: Tensor,
    orders: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    *,
    backward: bool,
    norm: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y of every order (axes*k, b, T, d_inner), the convolved tokens, and the states that enter each chunk.

    A backward pass needs the convolution before SiLU, and the states. With `norm`, its weight, mean squares
    to be written and eps, y is gated.
    """
    of_orders = launch.all_orders, launch.batches, launch.tokens
    exact = {"dtype": torch.float32, "device": zxbcdt.device}
    convolved = zxbcdt.new_empty(*of_orders, launch.channels)
    delta = torch.empty(launch.all_orders, launch.heads, launch.rows, **exact)
    columns = launch.heads + -(-2 * launch.d_state // launch.headdim)
    programs = launch.rows // MANY_STEPS[0] * columns * launch.all_orders
    enough = PROGRAMS_PER_PROCESSOR * fused_plan.gpu(zxbcdt.device).multiprocessors
    conv_steps, conv_warps = MANY_STEPS if programs >= enough else FEW_STEPS
    group = math.gcd(launch.steps, conv_steps // MIN_GROUPS)
    tiles = launch.batches * -(-launch.tokens // conv_steps)
    triton_forward.conv_forward[(tiles, columns, launch.all_orders)](
        zxbcdt,
        orders,
        conv_weight,
        conv_bias,
        dt_bias,
        convolved,
        delta,
        *zxbcdt.stride()[:2],
        launch.tokens,
        launch.steps,
        launch.rows,
        HEADS=launch.heads,
        HEADDIM=launch.headdim,
        SPLIT=launch.split,
        D_STATE=launch.d_state,
        WIDTH=launch.width,
        GROUPS=conv_steps // group,
        GROUP=group,
        ACTIVATED=not backward,
        EXACT=zxbcdt.dtype == torch.float32,
        num_warps=conv_warps,
    )
    y = zxbcdt.new_empty(*of_orders, launch.d_inner)
    keep_states = backward and launch.chunks > 1
    count = launch.all_orders * launch.batches * launch.sequences * launch.heads * launch.chunks
    states = torch.empty(count * launch.d_state * launch.headdim if keep_states else 0, **exact)
    triton_forward.scan_forward[launch.grid](
        convolved,
        delta,
        orders,
        A_log,
        D,
        *((y, D, delta) if norm is None else (zxbcdt, *norm[:2])),
        y,
        states,
        *zxbcdt.stride()[:2],
        launch.batches,
        launch.sequences,
        launch.steps,
        launch.tiles,
        launch.chunks,
        0.0 if norm is None else norm[2],
        ACTIVATED=not backward,
        KEEP_STATES=keep_states,
        GATED=norm is not None,
        **launch.constants(zxbcdt.dtype),
    )
    return y, convolved, states
