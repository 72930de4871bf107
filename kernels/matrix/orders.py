"""Gather tokens in scan order and scatter them back; the causal convolution in scan order.

A table of orders (w, S, l) holds token numbers: in each of w orders, S sequences of l tokens visit every one
of the T = S*l tokens once. `invert_orders` returns the inverse (w, T). Backward passes are written by hand:
that of a permutation is a permutation, and autograd's own backward of a depth-wise convolution is several
times slower on a CPU. Rows are taken from the whole batch as one table, which `index_select` reads twice as
fast as a batch of tables, and sums over orders are bags of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsora.kernels.matrix.depthwise import causal_conv, grad_of_steps, grad_of_taps


def invert_orders(orders: Tensor) -> Tensor:
    """Return the index of each token's step among the steps (w, S, l) of all orders: (w, T)."""
    first = orders[0].numel() * torch.arange(len(orders), device=orders.device)[:, None]
    return first + orders.flatten(1).argsort(dim=-1)


def gather_in_order(tokens: Tensor, orders: Tensor, inverse_orders: Tensor) -> Tensor:
    """Gather tokens (b, T, c) in every order: (b, w, S, l, c)."""
    return _GatherInOrder.apply(tokens, orders, inverse_orders)


def scatter_to_tokens(steps: Tensor, orders: Tensor, inverse_orders: Tensor) -> Tensor:
    """Scatter steps of every head (b, w, S, h, l, p) back to token order: (b, w, T, h*p)."""
    return _ScatterToTokens.apply(steps, orders, inverse_orders)


def conv_silu_in_order(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    orders: Tensor,
    inverse_orders: Tensor,
    heads: int,
    headdim: int,
) -> tuple[Tensor, Tensor]:
    """SiLU of the causal depth-wise convolution of tokens (b, T, c) in every order.

    weight (c, width) holds the taps from the oldest step to the present one, bias (c,). Sums are kept in
    float32 (float64 for float64 tokens). The first h*p channels come head by head, as products want them,
    (b, w, S, h, l, p); the others step by step, (b, w, S, l, c - h*p).
    """
    return _ConvSiluInOrder.apply(tokens, weight, bias, orders, inverse_orders, heads, headdim)


class _GatherInOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, orders: Tensor, inverse_orders: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_orders)
        return _gather(tokens, orders)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse_orders,) = ctx.saved_tensors
        return _sum_in_place(grad, inverse_orders), None, None


class _ScatterToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps: Tensor, orders: Tensor, inverse_orders: Tensor) -> Tensor:
        ctx.save_for_backward(orders)
        ctx.sizes = heads, headdim = steps.shape[3::2]
        order_count, lines, length = orders.shape
        # The index of a token's step among (line, step), then of its first head among (line, head, step).
        first = inverse_orders + inverse_orders // length * (heads - 1) * length
        rows = first[..., None] + length * torch.arange(heads, device=orders.device)
        out = _rows(steps.flatten(1, 4), rows.flatten())
        return out.view(len(steps), order_count, lines * length, heads * headdim)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (orders,) = ctx.saved_tensors
        heads, _ = ctx.sizes
        tokens = orders + orders[0].numel() * torch.arange(len(orders), device=orders.device)[:, None, None]
        rows = heads * tokens[:, :, None] + torch.arange(heads, device=orders.device)[:, None]
        by_head = grad.unflatten(-1, ctx.sizes).flatten(1, 3)
        return _rows(by_head, rows.flatten()).unflatten(1, rows.shape), None, None


class _ConvSiluInOrder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        orders: Tensor,
        inverse_orders: Tensor,
        heads: int,
        headdim: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens, weight, bias, orders, inverse_orders)
        ctx.sizes = heads, headdim
        x, BC = _by_head(causal_conv(_gather_exact(tokens, orders), weight, bias), heads, headdim)
        return _silu(x, tokens.dtype), F.silu(BC).to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_x: Tensor, grad_BC: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias, orders, inverse_orders = ctx.saved_tensors
        ordered = _gather_exact(tokens, orders)
        before = causal_conv(ordered, weight, bias)
        grad = torch.empty_like(before)
        x_into, BC_into = _by_head(grad, *ctx.sizes)
        x_before, BC_before = _by_head(before, *ctx.sizes)
        _silu_backward(grad_x, x_before, x_into)
        _silu_backward(grad_BC, BC_before, BC_into)
        grad_tokens = _sum_in_place(grad_of_steps(grad, weight), inverse_orders).to(tokens.dtype)
        grad_weight = grad_of_taps(grad, ordered, weight.shape[1]).to(weight.dtype)
        grad_bias = grad.sum((0, 1, 2, 3)).to(bias.dtype)
        return grad_tokens, grad_weight, grad_bias, None, None, None, None


def _by_head(steps: Tensor, heads: int, headdim: int) -> tuple[Tensor, Tensor]:
    """Views of steps (b, w, S, l, c): the heads' channels (b, w, S, h, l, p), and the others."""
    x, others = steps.tensor_split((heads * headdim,), dim=-1)
    return x.unflatten(-1, (heads, headdim)).transpose(-2, -3), others


def _silu(before: Tensor, dtype: torch.dtype) -> Tensor:
    """SiLU, in one piece of memory: rearranged in the same pass where an operator can."""
    if dtype != before.dtype or torch.compiler.is_compiling():
        return F.silu(before).to(dtype).contiguous()
    return torch.ops.aten.silu.out(before, out=torch.empty(before.shape, dtype=dtype, device=before.device))


def _silu_backward(grad: Tensor, before: Tensor, into: Tensor) -> None:
    if grad.dtype != before.dtype or torch.compiler.is_compiling():
        into.copy_(torch.ops.aten.silu_backward(grad.to(before.dtype), before))
    else:
        torch.ops.aten.silu_backward.grad_input(grad, before, grad_input=into)


def _gather(tokens: Tensor, orders: Tensor) -> Tensor:
    return _rows(tokens, orders.flatten()).unflatten(1, orders.shape)


def _gather_exact(tokens: Tensor, orders: Tensor) -> Tensor:
    return _gather(tokens, orders).to(torch.promote_types(tokens.dtype, torch.float32))


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """The numbered rows of every sample's table (b, N, c): (b, M, c)."""
    taken = table.flatten(0, 1).index_select(0, _in_batch(rows, table).flatten())
    return taken.unflatten(0, (len(table), rows.numel()))


def _sum_in_place(steps: Tensor, inverse_orders: Tensor) -> Tensor:
    """Sum over orders the steps (b, w, S, l, c) of each token: (b, T, c)."""
    if steps.device.type != "cpu" or torch.compiler.is_compiling():
        return _rows(steps.flatten(1, 3), inverse_orders.flatten()).unflatten(1, inverse_orders.shape).sum(1)
    batch, _, _, length, channels = steps.shape
    sequences = steps.flatten(0, 2)
    # Steps that a convolution left between its paddings are bags of rows as they lie.
    apart, own = divmod(sequences.stride(0), channels)
    if own or sequences.stride()[1:] != (channels, 1):
        sequences, apart = sequences.contiguous(), length
    table = sequences.as_strided(((len(sequences) - 1) * apart + length, channels), (channels, 1))
    samples = torch.arange(batch, device=inverse_orders.device)[:, None, None]
    bags = inverse_orders.mT + samples * inverse_orders.numel()
    bags += bags // length * (apart - length)
    return F.embedding_bag(bags.flatten(0, 1), table, mode="sum").unflatten(0, bags.shape[:2])


def _in_batch(rows: Tensor, table: Tensor) -> Tensor:
    """Rows (...) of one sample's table as rows of all samples' tables (b, N, c) in a line: (b, ...)."""
    firsts = table.shape[1] * torch.arange(len(table), device=rows.device)
    return firsts.view(-1, *[1] * rows.ndim) + rows
