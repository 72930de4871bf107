"""Gate, RMS norm and the sum of an axis's directions after a scan. Only the inputs are saved.

Shape letters: b batch, a axes, k orders per axis, T tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_norm_sum(y: Tensor, z: Tensor, weight: Tensor, axes: int, eps: float | Tensor) -> Tensor:
    """Sum over an axis's k orders of RMSNorm(y·SiLU(z)): y (b, a·k, T, c), z (b, T, c) -> (b, a, T, c).

    In float32 (float64 for float64 tokens), given back in y's dtype; eps may be per token,
    (b, a·k, T, 1). Where no gradient is recorded, the result overwrites y.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or y.itemsize < torch.float32.itemsize:
        return _GatedNormSum.apply(y, z, weight, axes, eps)
    gated = y.mul_(F.silu(z)[:, None])
    total, _ = _normed_sum(gated, axes, eps, torch.Tensor.mul_)
    return total.mul_(weight)


def _normed_sum(
    gated: Tensor, axes: int, eps: float | Tensor, times: Callable[[Tensor, Tensor], Tensor] = torch.mul
) -> tuple[Tensor, Tensor]:
    """Sum over each axis's orders of gated (b, a·k, T, c) over its RMS, and one over the RMS (b, a·k, T, 1).

    With `times` in place the sum takes gated's memory, and holds all of it.
    """
    length = torch.linalg.vector_norm(gated, dim=-1, keepdim=True)  # one pass, and no squares in memory
    scale = length.square_().div_(gated.shape[-1]).add_(eps).rsqrt_()
    parts = gated.unflatten(1, (axes, -1)).unbind(2)
    scales = scale.unflatten(1, (axes, -1)).unbind(2)
    total = times(parts[0], scales[0])
    for other, its_scale in zip(parts[1:], scales[1:], strict=True):
        total.addcmul_(other, its_scale)
    return total, scale


class _GatedNormSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, weight: Tensor, axes: int, eps: float | Tensor) -> Tensor:
        exact = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(exact) * F.silu(z.to(exact))[:, None]
        total, scale = _normed_sum(gated, axes, eps)
        ctx.save_for_backward(y, z, weight, scale)
        ctx.axes = axes
        return total.mul_(weight.to(exact)).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, scale = ctx.saved_tensors
        exact = scale.dtype
        z_exact, y_exact = z.to(exact), y.to(exact)
        gate = F.silu(z_exact)[:, None]
        normed = (y_exact * gate).mul_(scale).unflatten(1, (ctx.axes, -1))
        grad = grad.to(exact)
        grad_weight = (grad * _total(normed, 2)).sum((0, 1, 2))

        grad_normed = (grad * weight.to(exact)).unsqueeze(2)  # the same for every order of an axis
        grad_gated = grad_normed * normed
        along = grad_gated.mean(-1, keepdim=True)
        torch.addcmul(grad_normed, normed, along, value=-1, out=grad_gated)
        grad_gated = grad_gated.flatten(1, 2).mul_(scale)
        grad_gate = _total(grad_gated, 1, y_exact)
        grad_z = torch.ops.aten.silu_backward(grad_gate, z_exact)
        grad_y = grad_gated.mul_(gate)
        return grad_y.to(y.dtype), grad_z.to(z.dtype), grad_weight.to(weight.dtype), None, None


def _total(x: Tensor, dim: int, times: Tensor | None = None) -> Tensor:
    """Sum over a dimension of few, large slices, optionally weighted: slice by slice is faster on a CPU."""
    if times is None:
        first, *others = x.unbind(dim)
        return sum(others, first)
    (first, *others), (its, *theirs) = x.unbind(dim), times.unbind(dim)
    total = first * its
    for part, other in zip(others, theirs, strict=True):
        total.addcmul_(part, other)
    return total
