"""Eq. 3 step by step: the recurrence as the paper writes it. All other forms are tested against this one.

Shape letters: b batch, T tokens, S sequences of l steps, h heads, p channels per head, n state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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

    The arithmetic is in float64 for float64 tokens, in float32 for all others. `kernels.mamba2_scan` says
    what the arguments are.
    """
    exact = torch.promote_types(zxbcdt.dtype, torch.float32)
    tokens = zxbcdt.to(exact)
    weights = [w.to(exact) for w in (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)]
    sums = []
    for axis in orders:
        total = torch.zeros_like(tokens[..., : norm_weight.numel()])
        for sequences in axis:  # (S, l) token numbers
            scanned = torch.stack([_scan_once(tokens[:, s], weights, headdim, eps) for s in sequences], dim=1)
            total = total + scanned.flatten(1, 2)[:, torch.argsort(sequences.flatten())]
        sums.append(total)
    return torch.stack(sums).to(zxbcdt.dtype)


def _scan_once(tokens: Tensor, weights: list[Tensor], headdim: int, eps: float) -> Tensor:
    conv_weight, conv_bias, dt_bias, A_log, D, norm_weight = weights
    batch, length, _ = tokens.shape
    heads, d_inner, channels = D.numel(), norm_weight.numel(), conv_bias.numel()
    d_state = (channels - d_inner) // 2
    z, xBC, dt = tokens.split([d_inner, channels, heads], dim=-1)

    width = conv_weight.shape[-1]
    padded = F.pad(xBC, (0, 0, width - 1, 0))
    taps = conv_weight.reshape(channels, width)
    xBC = F.silu(sum(padded[:, j : j + length] * taps[:, j] for j in range(width)) + conv_bias)
    x, B, C = xBC.split([d_inner, d_state, d_state], dim=-1)
    x = x.reshape(batch, length, heads, headdim)
    dt = F.softplus(dt + dt_bias)
    A = -torch.exp(A_log)

    state = tokens.new_zeros(batch, heads, headdim, d_state)
    outputs = []
    for t in range(length):  # Eq. 3: h_t = exp(Δ A) h_{t-1} + Δ B x_t,  y_t = C h_t + D x_t
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        entering = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None, :]
        state = decay * state + entering
        outputs.append((state * C[:, t, None, None, :]).sum(-1) + D[:, None] * x[:, t])
    y = torch.stack(outputs, dim=1).reshape(batch, length, d_inner)

    gated = y * F.silu(z)
    return gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps) * norm_weight
