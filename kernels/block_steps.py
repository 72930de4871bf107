"""Operations between the products of a denoiser's block: PyTorch's operators or, on a GPU, one kernel each.

The kernels are for sampling: they keep nothing for a gradient. torch.compile is left the operators, which it
fuses by itself.
Shapes: B samples, n frames, l tokens of a frame, d wide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medsora.kernels.fused import backend as triton_backend
from medsora.kernels.fused import plan as fused_plan


def fused(backend: str, tokens: Tensor, *others: Tensor) -> bool:
    """Whether kernels of our own take such tensors of a model whose scans use `backend`.

    If so, `torch.ops.medsora` has them.
    """
    served = (
        backend in ("auto", "triton")
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and fused_plan.declines_tensors(tokens.device.type, tokens.dtype) is None
        and not torch.is_autocast_enabled(tokens.device.type)
        and triton_backend.unusable() is None
        and all(other.dtype == tokens.dtype for other in others)
    )
    if served:
        triton_backend.register()
    return served


class Residual(NamedTuple):
    """Tokens x + gate·branch, whose sum is left to the norm that reads it: x, branch (B, n, l, d)."""

    x: Tensor
    branch: Tensor
    gate: Tensor  # (B or 1, n or 1, 1, d)
    mean_square: Tensor | None = None  # (parts, B, n·l): by the root of their sum the branch is to be divided

    def sum(self) -> Tensor:
        """The tokens."""
        return torch.addcmul(self.x, self.gate, divided(self.branch, self.mean_square))


def divided(branch: Tensor, mean_square: Tensor | None) -> Tensor:
    """A branch (B, n, l, d) after what `gated_scan` has left to do."""
    if mean_square is None:
        return branch
    return (branch * mean_square.sum(0).view(*branch.shape[:-1], 1).rsqrt()).type_as(branch)


def add(
    x: Tensor, branch: Tensor, gate: Tensor, backend: str, mean_square: Tensor | None = None
) -> Tensor | Residual:
    """x + gate·branch; for kernels that add it in `add_norm`, the summand alone."""
    residual = Residual(x, branch, gate, mean_square)
    return residual if fused(backend, x, branch, gate) else residual.sum()


def gated_scan(
    zxbcdt: Tensor, *weights: Tensor, orders: Tensor, headdim: int, eps: float, backend: str
) -> tuple[Tensor, Tensor] | None:
    """`kernels.mamba2_scan` along one order, except that its norm has not divided yet; or None.

    None where no kernel of our own does, and in float16, which might not hold such values. Else
    (b, L, d_inner), and parts of the square of each token's divisor, (parts, b, L) in float32.
    """
    channels, d_inner = weights[0].shape[0], weights[-1].shape[0]
    if (
        zxbcdt.dtype == torch.float16
        or not fused(backend, zxbcdt)
        or fused_plan.declines(zxbcdt.device.type, zxbcdt.dtype, headdim, (channels - d_inner) // 2)
    ):
        return None
    return triton_backend.scan(zxbcdt, *weights, orders=orders, headdim=headdim, eps=eps, gated=True)


def add_norm(
    x: Tensor | Residual, shift: Tensor, scale: Tensor, layer: nn.LayerNorm, backend: str
) -> tuple[Tensor, Tensor]:
    """Tokens (B, n, l, d), and their adaLN: layer(x)·(1 + scale) + shift, these (B or 1, n or 1, 1, d)."""
    terms = x[:3] if isinstance(x, Residual) else (x,)
    if fused(backend, *terms, shift, scale):
        parameters = (shift, scale, layer.weight, layer.bias, layer.eps)
        if isinstance(x, Residual):
            return torch.ops.medsora.add_norm(*x, *parameters)
        return x, torch.ops.medsora.norm(x, *parameters)
    x = x.sum() if isinstance(x, Residual) else x
    return x, torch.addcmul(shift, layer(x), 1 + scale)


def gates(y: Tensor, of_height: nn.Linear, of_width: nn.Linear, backend: str) -> Tensor:
    """Eq. 9 of y (2, ..., d), height and width: height·σ(of_height(height)) + width·σ(of_width(width))."""
    layers, (height, width) = (of_height, of_width), y
    ours = fused(backend, y, *(layer.weight for layer in layers))
    if ours and y.dtype != torch.float32:
        return torch.ops.medsora.gates(
            y, *(value for layer in layers for value in (layer.weight, layer.bias))
        )
    if ours:
        return torch.ops.medsora.gated_sum(height, of_height(height), width, of_width(width))
    return torch.addcmul(height * of_height(height).sigmoid(), width, of_width(width).sigmoid())


def attends_fused(qkv: Tensor, window: int, backend: str) -> bool:
    """Whether `torch.ops.medsora.local_attention` takes qkv (N, l, 3, heads, f) with such a window."""
    length, features = qkv.shape[1], qkv.shape[-1]
    return fused(backend, qkv) and fused_plan.attends(length, window, features, qkv.dtype, qkv.device)
