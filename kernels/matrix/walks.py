"""Tokens in the order in which they are walked, and back in place; the causal convolution along the walk.

A table of walks (w, S, l) holds token numbers: in each of w ways, S sequences of l tokens visit every one of
the T = S*l tokens once. `places_of` walks is the inverse, (w, T). Backwards are written by hand: a
permutation's is a permutation, and autograd's own backward of a depth-wise convolution is several times
slower on a CPU. Rows are taken from the whole batch as one table, which `index_select` reads twice as fast as
a batch of tables, and sums over ways are bags of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsora.kernels.matrix.depthwise import causal_conv, grad_of_steps, grad_of_taps


def places_of(walks: Tensor) -> Tensor:
    """Where each token's step stands among the steps (w, S, l) of all ways: (w, T)."""
    first = walks[0].numel() * torch.arange(len(walks), device=walks.device)[:, None]
    return first + walks.flatten(1).argsort(dim=-1)


def walk(tokens: Tensor, walks: Tensor, places: Tensor) -> Tensor:
    """Tokens (b, T, c) along every walk: (b, w, S, l, c)."""
    return _Walk.apply(tokens, walks, places)


def put_back(steps: Tensor, walks: Tensor, places: Tensor) -> Tensor:
    """Steps of every head (b, w, S, h, l, p) in their tokens' own places: (b, w, T, h*p)."""
    return _PutBack.apply(steps, walks, places)


def walk_conv_silu(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    walks: Tensor,
    places: Tensor,
    heads: int,
    headdim: int,
) -> tuple[Tensor, Tensor]:
    """SiLU of the causal depth-wise convolution of tokens (b, T, c) along every walk.

    weight (c, width) holds the taps from the oldest step to the present one, bias (c,). Sums are kept in
    float32 (float64 for float64 tokens). The first h*p channels come head by head, as products want them,
    (b, w, S, h, l, p); the others step by step, (b, w, S, l, c - h*p).
    """
    return _WalkConvSilu.apply(tokens, weight, bias, walks, places, heads, headdim)


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, walks: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return _gather(tokens, walks)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _sum_in_place(grad, places), None, None


class _PutBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps: Tensor, walks: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(walks)
        ctx.sizes = heads, headdim = steps.shape[3::2]
        ways, lines, length = walks.shape
        # Where a token's step stands: among (line, step), then its first head's among (line, head, step).
        first = places + places // length * (heads - 1) * length
        rows = first[..., None] + length * torch.arange(heads, device=walks.device)
        out = _rows(steps.flatten(1, 4), rows.flatten())
        return out.view(len(steps), ways, lines * length, heads * headdim)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (walks,) = ctx.saved_tensors
        heads, _ = ctx.sizes
        tokens = walks + walks[0].numel() * torch.arange(len(walks), device=walks.device)[:, None, None]
        rows = heads * tokens[:, :, None] + torch.arange(heads, device=walks.device)[:, None]
        by_head = grad.unflatten(-1, ctx.sizes).flatten(1, 3)
        return _rows(by_head, rows.flatten()).unflatten(1, rows.shape), None, None


class _WalkConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        walks: Tensor,
        places: Tensor,
        heads: int,
        headdim: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens, weight, bias, walks, places)
        ctx.sizes = heads, headdim
        x, BC = _by_head(causal_conv(_gather_exact(tokens, walks), weight, bias), heads, headdim)
        return _silu(x, tokens.dtype), F.silu(BC).to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_x: Tensor, grad_BC: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias, walks, places = ctx.saved_tensors
        walked = _gather_exact(tokens, walks)
        before = causal_conv(walked, weight, bias)
        grad = torch.empty_like(before)
        x_into, BC_into = _by_head(grad, *ctx.sizes)
        x_before, BC_before = _by_head(before, *ctx.sizes)
        _silu_backward(grad_x, x_before, x_into)
        _silu_backward(grad_BC, BC_before, BC_into)
        grad_tokens = _sum_in_place(grad_of_steps(grad, weight), places).to(tokens.dtype)
        grad_weight = grad_of_taps(grad, walked, weight.shape[1]).to(weight.dtype)
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


def _gather(tokens: Tensor, walks: Tensor) -> Tensor:
    return _rows(tokens, walks.flatten()).unflatten(1, walks.shape)


def _gather_exact(tokens: Tensor, walks: Tensor) -> Tensor:
    return _gather(tokens, walks).to(torch.promote_types(tokens.dtype, torch.float32))


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """The numbered rows of every sample's table (b, N, c): (b, M, c)."""
    taken = table.flatten(0, 1).index_select(0, _in_batch(rows, table).flatten())
    return taken.unflatten(0, (len(table), rows.numel()))


def _sum_in_place(steps: Tensor, places: Tensor) -> Tensor:
    """Sum over ways of the steps (b, w, S, l, c) at each token's own place: (b, T, c)."""
    if steps.device.type != "cpu" or torch.compiler.is_compiling():
        return _rows(steps.flatten(1, 3), places.flatten()).unflatten(1, places.shape).sum(1)
    batch, _, _, length, channels = steps.shape
    sequences = steps.flatten(0, 2)
    # Steps that a convolution left between its paddings are bags of rows as they lie.
    apart, own = divmod(sequences.stride(0), channels)
    if own or sequences.stride()[1:] != (channels, 1):
        sequences, apart = sequences.contiguous(), length
    table = sequences.as_strided(((len(sequences) - 1) * apart + length, channels), (channels, 1))
    bags = places.mT + torch.arange(batch, device=places.device)[:, None, None] * places.numel()
    bags += bags // length * (apart - length)
    return F.embedding_bag(bags.flatten(0, 1), table, mode="sum").unflatten(0, bags.shape[:2])


def _in_batch(rows: Tensor, table: Tensor) -> Tensor:
    """Rows (...) of one sample's table as rows of all samples' tables (b, N, c) in a line: (b, ...)."""
    firsts = table.shape[1] * torch.arange(len(table), device=rows.device)
    return firsts.view(-1, *[1] * rows.ndim) + rows
