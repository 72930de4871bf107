"""Tokens in the order in which they are walked, and back in place; the causal convolution along the walk.

A table of walks (w, S, l) holds token numbers: in each of w ways, S sequences of l tokens visit every one of
the T = S*l tokens once. Backwards are written by hand: a permutation's is a permutation, and autograd's own
backward of a depth-wise convolution is several times slower on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.depthwise import causal_conv, grad_of_steps, grad_of_taps


def walk(tokens: Tensor, walks: Tensor) -> Tensor:
    """Tokens (b, T, c) along every walk: (b, w, S, l, c)."""
    return _Walk.apply(tokens, walks)


def put_back(steps: Tensor, walks: Tensor) -> Tensor:
    """Steps (b, w, S, l, c) in their tokens' own places: (b, w, T, c)."""
    return _PutBack.apply(steps, walks)


def walk_conv_silu(tokens: Tensor, weight: Tensor, bias: Tensor, walks: Tensor) -> Tensor:
    """SiLU of the causal depth-wise convolution of tokens (b, T, c) along every walk: (b, w, S, l, c).

    weight (c, width) holds the taps from the oldest step to the present one, bias (c,). Sums are kept in
    float32 (float64 for float64 tokens).
    """
    return _WalkConvSilu.apply(tokens, weight, bias, walks)


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, walks: Tensor) -> Tensor:
        ctx.save_for_backward(walks)
        return _gather(tokens, walks)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (walks,) = ctx.saved_tensors
        return _scatter(grad, walks).sum(1), None


class _PutBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps: Tensor, walks: Tensor) -> Tensor:
        ctx.save_for_backward(walks)
        return _scatter(steps, walks)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (walks,) = ctx.saved_tensors
        tokens = grad.shape[2]
        rows = walks.flatten(1) + tokens * torch.arange(walks.shape[0], device=walks.device)[:, None]
        return grad.flatten(1, 2).index_select(1, rows.flatten()).unflatten(1, walks.shape), None


class _WalkConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor, walks: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias, walks)
        return F.silu(causal_conv(_gather_exact(tokens, walks), weight, bias)).to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        tokens, weight, bias, walks = ctx.saved_tensors
        walked = _gather_exact(tokens, walks)
        before = causal_conv(walked, weight, bias)
        grad = torch.ops.aten.silu_backward(grad.to(before.dtype), before)
        grad_tokens = _scatter(grad_of_steps(grad, weight), walks).sum(1).to(tokens.dtype)
        grad_weight = grad_of_taps(grad, walked, weight.shape[1]).to(weight.dtype)
        return grad_tokens, grad_weight, grad.sum((0, 1, 2, 3)).to(bias.dtype), None


def _gather(tokens: Tensor, walks: Tensor) -> Tensor:
    return tokens.index_select(1, walks.flatten()).unflatten(1, walks.shape)


def _gather_exact(tokens: Tensor, walks: Tensor) -> Tensor:
    return _gather(tokens, walks).to(torch.promote_types(tokens.dtype, torch.float32))


def _scatter(steps: Tensor, walks: Tensor) -> Tensor:
    ways, tokens = walks.shape[0], walks[0].numel()
    rows = walks.flatten(1).argsort(dim=-1) + tokens * torch.arange(ways, device=walks.device)[:, None]
    return steps.flatten(1, 3).index_select(1, rows.flatten()).unflatten(1, (ways, tokens))
