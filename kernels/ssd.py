"""The scan as batched matrix products in plain PyTorch: any length, autograd, CPU and GPU.

A scalar state space is a masked attention: y_t = sum over s <= t of (C_t.B_s) exp(sum of ΔA after s) Δ_s x_s.
Up to `CHUNK` tokens that is one matrix per head. Longer sequences are cut into chunks that hand a state to
the next one, so the cost grows linearly with the length.

Shape letters: b sequences, k orders, L tokens, c chunks, q tokens of a chunk, h heads, p channels per head,
n state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ordered_conv import ordered_conv_silu

CHUNK = 128  # tokens: the matrix of a chunk costs as much as the states that it saves at n = 128


def scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    orders: Tensor | None,
    headdim: int,
    eps: float,
    chunk: int = CHUNK,
) -> Tensor:
    """Mamba-2 of the projected tokens (b, L, 2*h*p + 2*n + h), walked in each order and summed: (b, L, h*p).

    Products run in the tokens' dtype; decays, Δ and the norm in float32 (float64 for float64 tokens).
    `kernels.mamba2_scan` says what the arguments are.
    """
    heads, d_inner, channels = D.numel(), norm_weight.numel(), conv_bias.numel()
    d_state = (channels - d_inner) // 2
    length = zxbcdt.shape[1]
    exact = torch.promote_types(zxbcdt.dtype, torch.float32)
    with torch.autocast(zxbcdt.device.type, enabled=False):
        z, xBC, dt = zxbcdt.split([d_inner, channels, heads], dim=-1)
        back = None if orders is None else torch.argsort(orders, dim=-1)
        xBC = ordered_conv_silu(xBC, conv_weight.reshape(channels, -1), conv_bias, orders)
        x, B, C = xBC.split([d_inner, d_state, d_state], dim=-1)
        x = x.unflatten(-1, (heads, headdim))
        dt = F.softplus(dt.to(exact) + dt_bias.to(exact))
        dt = dt[:, None] if orders is None else dt[:, orders]
        decay = dt * -torch.exp(A_log.to(exact))
        if length <= chunk:
            y = _one_chunk(x, B, C, dt, decay, D, back)
        else:
            y = _put_back(_many_chunks(x, B, C, dt, decay, D, chunk), back)
        gated = y.flatten(-2).to(exact) * F.silu(z.to(exact))[:, None]
        scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
        return ((gated * scale).sum(1) * norm_weight.to(exact)).to(zxbcdt.dtype)


def _one_chunk(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, D: Tensor, back: Tensor | None
) -> Tensor:
    """All tokens in one matrix per head, D on its diagonal: (b, k, L, h, p) from tokens in walking order.

    With `back` (k, L), token -> step, the rows of the matrix (not its result, which is larger) are put back.
    """
    steps = torch.arange(x.shape[2], device=x.device)
    reached = decay.cumsum(2)  # log of the decay from the start to each step
    row_step = steps.expand(x.shape[1], -1) if back is None else back
    row_C, row_reached = _put_back(C, back), _put_back(reached, back)

    past = (row_step[:, :, None] >= steps)[:, None]  # (k, 1, L, L)
    log_decay = row_reached.transpose(2, 3).unsqueeze(-1) - reached.transpose(2, 3).unsqueeze(-2)
    kernel = torch.exp(log_decay.masked_fill(~past, -torch.inf)) * dt.transpose(2, 3).unsqueeze(-2)
    kernel = kernel * (row_C @ B.transpose(2, 3)).unsqueeze(2)
    itself = (row_step[:, :, None] == steps)[:, None]
    kernel = kernel + itself * D.to(kernel.dtype)[:, None, None]
    return (kernel.to(x.dtype) @ x.transpose(2, 3)).transpose(2, 3)


def _many_chunks(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, D: Tensor, chunk: int) -> Tensor:
    """Chunks side by side, then the state that each hands to the next: (b, k, L, h, p) in walking order."""
    orders, length = x.shape[1:3]
    count = -(-length // chunk)

    def cut(tokens: Tensor) -> Tensor:  # (b, k, L, ...) -> (b, k*c, q, ...); added tokens have Δ = 0, x = 0
        padding = (0, 0) * (tokens.dim() - 3) + (0, count * chunk - length)
        return F.pad(tokens, padding).unflatten(2, (count, chunk)).flatten(1, 2)

    x, B, C, dt, decay = (cut(tokens) for tokens in (x, B, C, dt, decay))
    y = _one_chunk(x, B, C, dt, decay, D, None)

    reached = decay.cumsum(2)
    to_end = torch.exp(reached[:, :, -1:] - reached) * dt  # (b, k*c, q, h)
    added = B.unsqueeze(2).mT @ (x * to_end.unsqueeze(-1).to(x.dtype)).transpose(2, 3)  # (b, k*c, h, n, p)
    added = added.to(reached.dtype).unflatten(1, (orders, count))
    kept = torch.exp(reached[:, :, -1]).unflatten(1, (orders, count))[..., None, None]
    state = torch.zeros_like(added[:, :, 0])
    entering = [state]
    for i in range(count - 1):
        state = kept[:, :, i] * state + added[:, :, i]
        entering.append(state)
    carried = C.unsqueeze(2) @ torch.stack(entering, 2).flatten(1, 2).to(x.dtype)  # (b, k*c, h, q, p)
    y = y + carried.transpose(2, 3) * torch.exp(reached).unsqueeze(-1).to(x.dtype)
    return y.unflatten(1, (orders, count)).flatten(2, 3)[:, :, :length]


def _put_back(steps: Tensor, back: Tensor | None) -> Tensor:
    """(b, k, L, ...) in walking order -> the same in the tokens' own places."""
    if back is None:
        return steps
    index = back.reshape(1, *back.shape, *(1,) * (steps.dim() - 3)).expand(steps.shape)
    return steps.gather(2, index)
