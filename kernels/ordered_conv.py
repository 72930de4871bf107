"""Gather tokens by each order, then the causal depth-wise convolution and SiLU, with its backward by hand.

Autograd's own backward of these is several times slower on a CPU, compiled or not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def ordered_conv_silu(tokens: Tensor, weight: Tensor, bias: Tensor, orders: Tensor | None) -> Tensor:
    """Walk the tokens (b, L, channels) in each of the orders (k, L) and convolve: (b, k, L, channels).

    weight (channels, width) holds the taps from the oldest token to the present one, bias (channels,).
    Without orders, k is 1. Sums are kept in float32 (float64 for float64 tokens).
    """
    return _OrderedConvSilu.apply(tokens, weight, bias, orders)


class _OrderedConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor, orders: Tensor | None) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias, orders)
        return F.silu(_convolve(_walk(tokens, orders), weight, bias)).to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        tokens, weight, bias, orders = ctx.saved_tensors
        walked = _walk(tokens, orders)
        before = _convolve(walked, weight, bias)
        gate = torch.sigmoid(before)
        grad_before = grad.to(before.dtype) * gate * (1 + before * (1 - gate))

        length, width = walked.shape[2], weight.shape[1]
        lags = range(min(width, length))  # how many tokens ago; tap width-1 sees the present one
        taps = weight.to(before.dtype).unbind(1)
        grad_walked = grad_before * taps[-1]
        for lag in lags[1:]:
            grad_walked[:, :, :-lag].addcmul_(grad_before[:, :, lag:], taps[-1 - lag])
        grad_weight = torch.zeros_like(weight)
        for lag in lags:
            product = grad_before[:, :, lag:] * walked[:, :, : length - lag]
            grad_weight[:, width - 1 - lag] = product.sum((0, 1, 2))
        grad_tokens = _unwalk(grad_walked, orders).to(tokens.dtype)
        return grad_tokens, grad_weight, grad_before.sum((0, 1, 2)).to(bias.dtype), None


def _walk(tokens: Tensor, orders: Tensor | None) -> Tensor:
    """(b, L, channels) -> (b, k, L, channels), float32 or wider."""
    exact = torch.promote_types(tokens.dtype, torch.float32)
    if orders is None:
        return tokens.unsqueeze(1).to(exact)
    return tokens.index_select(1, orders.flatten()).unflatten(1, orders.shape).to(exact)


def _unwalk(walked: Tensor, orders: Tensor | None) -> Tensor:
    """The transpose of `_walk`: every order's tokens back in place and summed, (b, L, channels)."""
    if orders is None:
        return walked.squeeze(1)
    total = torch.zeros_like(walked[:, 0])
    for steps, back in zip(walked.unbind(1), torch.argsort(orders, dim=-1), strict=True):
        total += steps.index_select(1, back)
    return total


def _convolve(walked: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.to(walked.dtype).unbind(1)
    out = torch.addcmul(bias.to(walked.dtype), walked, taps[-1])
    for lag in range(1, min(len(taps), walked.shape[2])):
        out[:, :, lag:].addcmul_(walked[:, :, :-lag], taps[-1 - lag])
    return out
