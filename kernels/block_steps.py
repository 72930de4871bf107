"""What stands between the products of a denoiser's block: PyTorch's operators or, on a GPU, one kernel each.

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
    """Whether kernels of our own take such tensors of a model whose scans ask for `backend`.

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

    def sum(self) -> Tensor:
        """The tokens."""
        return torch.addcmul(self.x, self.gate, self.branch)


def add(x: Tensor, branch: Tensor, gate: Tensor, backend: str) -> Tensor | Residual:
    """x + gate·branch; where a kernel of our own adds it in `add_norm`, what is to be added."""
    residual = Residual(x, branch, gate)
    return residual if fused(backend, *residual) else residual.sum()


def add_norm(
    x: Tensor | Residual, shift: Tensor, scale: Tensor, layer: nn.LayerNorm, backend: str
) -> tuple[Tensor, Tensor]:
    """Tokens (B, n, l, d), and their adaLN: layer(x)·(1 + scale) + shift, these (B or 1, n or 1, 1, d)."""
    terms = x if isinstance(x, Residual) else (x,)
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
