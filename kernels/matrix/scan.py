"""The scan as batched matrix products in plain PyTorch: any length, autograd, CPU and GPU.

A scalar state space is a masked attention: y_t = sum over s <= t of (C_t.B_s) exp(sum of ΔA after s) Δ_s x_s.
Up to `ONE_CHUNK` steps that is one matrix per head. Longer sequences are cut into chunks that hand a state to
the next one, so the cost grows linearly with the length.

Shape letters: b batch, w orders (axes*k), S sequences, l steps, c chunks, q steps of a chunk, h heads,
p channels per head, n state size; r = all sequences of all orders, w*S.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medsora.kernels.matrix.gated_norm import gated_norm_sum
from medsora.kernels.matrix.orders import (
    conv_silu_in_order,
    gather_in_order,
    invert_orders,
    scatter_to_tokens,
)

ONE_CHUNK = 128  # steps: up to here one matrix is cheaper than states
CHUNK = 64  # steps at most in each of several chunks
MIN_DELTA = 1e-30  # smaller Δ count as this; Δ is 0 in steps that only fill a chunk
# Exponents (base 2) are clamped: below -100 float32 goes denormal and slow; above 30 masked-out entries could
# overflow in products with gradients up to 1e29.
EXPONENTS = -100, 30
MIN_STEP_EXPONENT = EXPONENTS[0]  # a single step decays no further
GROUP = 16  # steps whose decays are relative to one of them: sums of few steps lose no precision


def scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    orders: Tensor,
    headdim: int,
    eps: float,
) -> Tensor:
    """Mamba-2 of projected tokens (b, T, 2*h*p + 2*n + h) along orders (axes, k, S, l): (axes, b, T, h*p).

    Products run in the tokens' dtype; decays, Δ and the norm in float32 (float64 for float64 tokens).
    `kernels.mamba2_scan` documents the arguments.
    """
    weights = (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    run = partial(_scan, zxbcdt, weights, orders=orders, headdim=headdim, eps=eps)
    if torch.compiler.is_compiling() or zxbcdt.device.type != "cpu":  # no GPU is waited for
        return run(hide_nan=True)
    out = run(hide_nan=False)
    # The norm makes a token's channels NaN together; where some are infinite, each head has its own answer.
    # A FakeTensor counts as finite.
    if type(out) is Tensor and out[..., ::headdim].isnan().any():
        return run(hide_nan=True)
    return out


def _scan(
    zxbcdt: Tensor,
    weights: tuple[Tensor, ...],
    *,
    orders: Tensor,
    headdim: int,
    eps: float | Tensor,
    hide_nan: bool,
) -> Tensor:
    """The scan; with `hide_nan`, tokens that are not finite are zeros in its products and NaN in the norm.

    Else they reach earlier tokens: products multiply what a step must not see by 0, which NaN survives.
    """
    conv_weight, conv_bias, dt_bias, A_log, D, norm_weight = weights
    heads, d_inner, channels = D.numel(), norm_weight.numel(), conv_bias.numel()
    exact = torch.promote_types(zxbcdt.dtype, torch.float32)
    flat_orders = orders.flatten(0, 1)
    inverse_orders = invert_orders(flat_orders)
    with torch.autocast(zxbcdt.device.type, enabled=False):
        z, xBC, dt = zxbcdt.split([d_inner, channels, heads], dim=-1)
        taps = conv_weight.reshape(channels, -1)
        dt = F.softplus(dt.to(exact) + dt_bias.to(exact))
        if hide_nan:
            sums = xBC.detach().sum(-1, keepdim=True, dtype=exact) + dt.detach().sum(-1, keepdim=True)
            broken = 0 * sums  # (b, T, 1): NaN for tokens that are not finite
            xBC, dt = (tokens.masked_fill(broken.isnan(), 0) for tokens in (xBC, dt))
            later = gather_in_order(broken, flat_orders, inverse_orders).cumsum(3)
            eps = eps + scatter_to_tokens(later.unsqueeze(3), flat_orders, inverse_orders)
        x, BC = conv_silu_in_order(xBC, taps, conv_bias, flat_orders, inverse_orders, heads, headdim)
        x, (B, C) = x.flatten(1, 2), BC.flatten(1, 2).chunk(2, dim=-1)
        dt = gather_in_order(dt, flat_orders, inverse_orders).flatten(1, 2)
        decay = dt * -torch.exp(A_log.to(exact))
        run = _one_chunk if flat_orders.shape[2] <= ONE_CHUNK else _many_chunks
        y = run(x, B, C, dt, decay, D).unflatten(1, flat_orders.shape[:2])

        by_token = scatter_to_tokens(y, flat_orders, inverse_orders)
        summed = gated_norm_sum(by_token, z, norm_weight, orders.shape[0], eps)
        return summed.transpose(0, 1)


def _one_chunk(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, D: Tensor) -> Tensor:
    """All steps in one matrix per head, D on its diagonal: x (b, r, h, q, p) -> (b, r, h, q, p)."""
    return _OneChunk.apply(x, B, C, dt, decay, D)


class _OneChunk(torch.autograd.Function):
    """Saves only its inputs: the matrices are recomputed for the gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, D: Tensor) -> Tensor:
        ctx.save_for_backward(x, B, C, dt, decay, D)
        if x.shape[-2] == 1:
            return x * _weight_of_one(B, C, dt, D).to(x.dtype)
        alike = _alike(C, B).unsqueeze(2)
        kernel = _weights(decay, dt).mul_(alike)
        _diagonal(kernel).copy_(torch.addcmul(D[:, None], _diagonal(alike), dt.mT))
        return kernel.to(x.dtype) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        x, B, C, dt, decay, D = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if x.shape[-2] == 1:
                return _backward_of_one(grad, x, B, C, dt, D)
            weights, alike = _weights(decay, dt), _alike(C, B).to(decay.dtype).unsqueeze(2)
            _diagonal(weights).copy_(dt.mT)
            grad_kernel = (grad @ x.mT).to(decay.dtype)
            own = _diagonal(grad_kernel).clone()  # (b, r, h, q)
            grad_D = own.sum((0, 1, 3))
            grad_kernel.mul_(weights)
            grad_alike = grad_kernel.sum(2).tril_().to(B.dtype)

            # A step's own weight has no exponent, and is so large that the others would drown beside it.
            grad_exponent = grad_kernel.mul_(alike.tril(-1))
            grad_dt = grad_exponent.sum(-2).mT / dt.clamp(min=MIN_DELTA) + (own * _diagonal(alike)).mT
            # A step decays what earlier steps hand to it and to later ones. These are added up: differences
            # of running sums would leave little but rounding where large steps lie among small ones.
            through = grad_exponent.cumsum_(-1).tril_(-1).sum(-2)  # (b, r, h, q), each of the step after it
            grad_decay = F.pad(through[..., :-1], (1, 0)).mT

            kernel = weights.mul_(alike)
            _diagonal(kernel).add_(D[:, None])
            grad_x = kernel.to(x.dtype).mT @ grad
            return grad_x, grad_alike.mT @ C, grad_alike @ B, grad_dt, grad_decay, grad_D.to(D.dtype)


def _weight_of_one(B: Tensor, C: Tensor, dt: Tensor, D: Tensor) -> Tensor:
    """Factor of x in sequences of a single step: (b, r, h, 1, 1)."""
    alike = (C.to(dt.dtype) * B.to(dt.dtype)).sum(-1, keepdim=True)
    return torch.addcmul(D.to(dt.dtype), alike, dt).mT.unsqueeze(-1)


def _backward_of_one(
    grad: Tensor, x: Tensor, B: Tensor, C: Tensor, dt: Tensor, D: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of `_OneChunk`'s arguments for sequences of a single step, which nothing fades in."""
    exact = dt.dtype
    alike = (C.to(exact) * B.to(exact)).sum(-1, keepdim=True)
    grad_x = grad * _weight_of_one(B, C, dt, D).to(grad.dtype)
    grad_weight = (grad.to(exact) * x.to(exact)).sum(-1).mT  # (b, r, 1, h)
    grad_alike = (grad_weight * dt).sum(-1, keepdim=True)
    grad_D = grad_weight.sum((0, 1, 2)).to(D.dtype)
    grad_B, grad_C = (grad_alike * C).to(B.dtype), (grad_alike * B).to(C.dtype)
    return grad_x, grad_B, grad_C, grad_weight * alike, torch.zeros_like(dt), grad_D


def _weights(decay: Tensor, dt: Tensor) -> Tensor:
    """Δ_s exp(sum of ΔA after step s up to step t), in one piece: (b, r, q, h) -> (b, r, h, q, q).

    Where s is later than t it has no meaning, which `_alike` leaves out: there are h times as many of these.
    The diagonal is Δ, rounded: callers overwrite it with the exact values.
    Exponents are differences of sums, which each group of steps t counts from its middle. A step's is -100 at
    least, so sums inside a group are within 1024 in float32, and rounding two of them changes a weight by at
    most 2·2^-15·ln 2 = 4.2e-5 of itself; larger sums belong to weights of which nothing is left.
    """
    steps = dt.mT.clamp(min=MIN_DELTA)  # (b, r, h, q)
    length = steps.shape[-1]
    missing = -length % GROUP
    whole, rest = _reached(F.pad(decay.mT, (0, missing)) if missing else decay.mT.contiguous(), -1)
    groups = whole.unflatten(-1, (-1, GROUP))
    middle = groups[..., GROUP // 2, None]
    reached = (groups - middle).add_(rest.unflatten(-1, (-1, GROUP)))  # (b, r, h, groups, GROUP)
    left = (whole[..., None, :length] - middle).add_((rest[..., :length] - steps.log2()).unsqueeze(-2))
    weights = (reached.unsqueeze(-1) - left.unsqueeze(-2)).flatten(-3, -2)[..., :length, :]
    return weights.clamp_(*EXPONENTS).exp2_()


def _diagonal(matrices: Tensor) -> Tensor:
    """View of what matrices hold of each step for itself: (..., q, q) -> (..., q)."""
    return matrices.diagonal(dim1=-2, dim2=-1)


def _reached(decay: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Exponents of 2 of the decay from the start to each step: their exact whole part, and the rest."""
    exponents = _to_base_2(decay).clamp(min=MIN_STEP_EXPONENT)
    return exponents.trunc().cumsum(dim), exponents.frac().cumsum(dim)


def _to_base_2(exponent: Tensor) -> Tensor:
    """Convert an exponent of e to one of 2, whose powers are several times faster on a CPU.

    A literal: torch.compile with dynamic sizes takes a global number for one that may change.
    """
    return exponent * 1.4426950408889634


def _alike(C: Tensor, B: Tensor) -> Tensor:
    """C_t.B_s, 0 where s is later than t: (b, r, q, n) -> (b, r, q, q)."""
    return (C @ B.mT).tril_()


def _many_chunks(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, D: Tensor) -> Tensor:
    """Chunks side by side, then the state that each hands on: x (b, r, h, l, p) -> (b, r, h, l, p)."""
    rows, heads, length, headdim = x.shape[1:]
    count = -(-length // CHUNK)
    chunk = -(-length // count)
    missing = count * chunk - length  # steps that are added have Δ = 0, x = 0

    def cut(steps: Tensor) -> Tensor:  # (b, r, l, ...) -> (b, r*c, q, ...)
        return F.pad(steps, (0, 0, 0, missing)).unflatten(2, (count, chunk)).flatten(1, 2)

    x = F.pad(x, (0, 0, 0, missing)).unflatten(3, (count, chunk)).transpose(2, 3).flatten(1, 2)
    B, C, dt, decay = (cut(steps) for steps in (B, C, dt, decay))
    y = _one_chunk(x, B, C, dt, decay, D)  # (b, r*c, h, q, p)

    reached = sum(_reached(decay, 2))
    # Summed from the end, not the whole sum less the start's, whose gradients would cancel to rounding.
    after = F.pad(decay[:, :, 1:], (0, 0, 0, 1)).flip(2)
    to_end = torch.exp2(sum(_reached(after, 2)).flip(2)) * dt  # (b, r*c, q, h)
    weighted = (x * to_end.mT.unsqueeze(-1).to(x.dtype)).transpose(2, 3).flatten(-2)
    added = (B.mT @ weighted).to(reached.dtype).unflatten(-1, (heads, headdim)).unflatten(1, (rows, count))
    kept = torch.exp2(reached[:, :, -1]).unflatten(1, (rows, count))[:, :, :, None, :, None]
    state = torch.zeros_like(added[:, :, 0])  # (b, r, n, h, p)
    entering = [state]
    for i in range(count - 1):
        state = kept[:, :, i] * state + added[:, :, i]
        entering.append(state)
    carried = C @ torch.stack(entering, 2).flatten(1, 2).flatten(-2).to(x.dtype)  # (b, r*c, q, h*p)
    carried = carried.unflatten(-1, (heads, headdim)).transpose(2, 3)
    y = y + carried * torch.exp2(reached).mT.unsqueeze(-1).to(x.dtype)
    return y.unflatten(1, (rows, count)).transpose(2, 3).flatten(3, 4)[:, :, :, :length]
