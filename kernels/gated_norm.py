"""What follows a scan: gate, RMS norm and the sum of an axis's directions. Only its inputs are kept.

Shape letters: b batch, a axes, k walks of an axis, T tokens, c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_norm_sum(y: Tensor, z: Tensor, weight: Tensor, axes: int, eps: float) -> Tensor:
    """Sum over an axis's k walks of RMSNorm(y·SiLU(z)): y (b, a·k, T, c), z (b, T, c) -> (b, a, T, c).

    In float32 (float64 for float64 tokens), given back in y's dtype. Where no gradient can be asked for, y's
    memory is used for it.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or y.itemsize < torch.float32.itemsize:
        return _GatedNormSum.apply(y, z, weight, axes, eps)
    gated = y.mul_(F.silu(z)[:, None])
    length = torch.linalg.vector_norm(gated, dim=-1, keepdim=True)  # one pass, and no squares in memory
    scale = length.square_().div_(gated.shape[-1]).add_(eps).rsqrt_()
    first, *others = gated.unflatten(1, (axes, -1)).unbind(2)
    scales = scale.unflatten(1, (axes, -1)).unbind(2)
    total = first.mul_(scales[0])
    for other, its_scale in zip(others, scales[1:], strict=True):
        total.addcmul_(other, its_scale)
    return total.mul_(weight)


class _GatedNormSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, weight: Tensor, axes: int, eps: float) -> Tensor:
        exact = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(exact) * F.silu(z.to(exact))[:, None]
        scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(y, z, weight, scale)
        ctx.axes = axes
        normed = gated.mul_(scale).unflatten(1, (axes, -1)).sum(2)
        return normed.mul_(weight.to(exact)).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, scale = ctx.saved_tensors
        exact = scale.dtype
        z_exact, y_exact = z.to(exact), y.to(exact)
        gate = F.silu(z_exact)[:, None]
        normed = (y_exact * gate).mul_(scale).unflatten(1, (ctx.axes, -1))
        grad = grad.to(exact)
        grad_weight = (grad * normed.sum(2)).sum((0, 1, 2))

        grad_normed = (grad * weight.to(exact)).unsqueeze(2)  # the same for every walk of an axis
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_gated = torch.addcmul(grad_normed, normed, along, value=-1).flatten(1, 2).mul_(scale)
        grad_z = torch.ops.aten.silu_backward((grad_gated * y_exact).sum(1), z_exact)
        grad_y = grad_gated.mul_(gate)
        return grad_y.to(y.dtype), grad_z.to(z.dtype), grad_weight.to(weight.dtype), None, None
