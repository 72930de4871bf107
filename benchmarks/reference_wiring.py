"""The public wiring of this model, made anew from its description: what the speed-ups are measured against.

Same weights, same numbers, other ways. A block scans four times (two axes, two directions), each scan on its
own copy of the projected tokens, gathered by a permutation that is a Python list, and each followed by its
own output projection; joint images lie in the same spiral as the clip, so sampling carries them along; q, k
and v are three projections, windows of keys are copied three times over; the temporal scan runs on transposed
tokens; adaLN is computed in every step. Not for use: `tests/benchmarks/test_reference_wiring.py` holds it to
the numbers of `MedSora` with `mixing="mixed"`, which walks the same spirals.

Shapes as in `medsora.denoiser`: B samples, n latent frames, h̄ x w̄ tokens per frame, d wide, P projected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import mamba2_scan, mamba_ssm_backend
from medsora.denoiser import MedSora
from medsora.denoiser.attention import LocalAttention
from medsora.denoiser.block import Block
from medsora.denoiser.embed import position_table
from medsora.denoiser.mamba import Mamba2, SpatialMamba, TemporalMamba
from medsora.denoiser.model import MedSoraOutput
from medsora.spiral import spiral_order

Scan = Callable[[Mamba2, Tensor], Tensor]  # (weights, projected sequences (S, l, P)) -> (S, l, d_inner)


def matrix_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """A good scan of short sequences in plain PyTorch: library convolution, one matrix per head, D apart."""
    heads, d_inner, channels = mamba.D.numel(), mamba.norm.weight.numel(), mamba.conv1d.bias.numel()
    d_state, length = (channels - d_inner) // 2, zxbcdt.shape[1]
    z, xBC, dt = zxbcdt.split([d_inner, channels, heads], dim=-1)
    taps = mamba.conv1d.weight
    xBC = F.conv1d(xBC.mT, taps, mamba.conv1d.bias, padding=taps.shape[2] - 1, groups=channels)
    x, B, C = F.silu(xBC[..., :length].mT).split([d_inner, d_state, d_state], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    dt = F.softplus(dt + mamba.dt_bias)  # (S, l, heads)
    reached = (dt * -torch.exp(mamba.A_log)).cumsum(1).mT
    past = torch.ones(length, length, dtype=torch.bool, device=z.device).tril()
    log_decay = (reached.unsqueeze(-1) - reached.unsqueeze(-2)).masked_fill(~past, -torch.inf)
    kernel = (C @ B.mT).unsqueeze(1) * log_decay.exp() * dt.mT.unsqueeze(-2)
    y = (kernel.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2)
    y = (y + x * mamba.D[:, None]).flatten(-2)
    return F.rms_norm(y * F.silu(z), (d_inner,), mamba.norm.weight, mamba.norm.eps).to(zxbcdt.dtype)


def torch_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """Our own scan in plain PyTorch (`kernels.ssd`), on sequences that lie one after another."""
    return mamba2_scan(
        zxbcdt,
        mamba.conv1d.weight,
        mamba.conv1d.bias,
        mamba.dt_bias,
        mamba.A_log,
        mamba.D,
        mamba.norm.weight,
        headdim=mamba.headdim,
        eps=mamba.norm.eps,
        backend="torch",
    )


def package_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """The package mamba-ssm's kernels, on a GPU (`kernels.mamba_ssm_backend.function_in_use` says which)."""
    return mamba_ssm_backend.scan_sequences(
        zxbcdt,
        mamba.conv1d.weight,
        mamba.conv1d.bias,
        mamba.dt_bias,
        mamba.A_log,
        mamba.D,
        mamba.norm.weight,
        mamba.headdim,
        mamba.norm.eps,
    )


@lru_cache(maxsize=64)
def spiral_lists(frames: int, side: int, variant: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """The spiral over frames x side, its reverse, and the inverses of both, as Python lists."""
    forward = spiral_order(frames, side, variant)
    backward = forward.flip(0)
    return tuple(order.tolist() for order in (forward, backward, forward.argsort(), backward.argsort()))


class ReferenceWiring(nn.Module):
    """A `MedSora`'s own parameters under the public wiring; `scan` says how one scan is computed."""

    def __init__(self, model: MedSora, scan: Scan = matrix_scan) -> None:
        super().__init__()
        self.model, self.scan = model, scan

    def compile_blocks(self) -> None:
        """Put the blocks through torch.compile."""
        self._block = torch.compile(self._block, dynamic=False)

    def forward(self, z: Tensor, t: Tensor) -> MedSoraOutput:
        """Latents (B, n, C, h, w) and timesteps (B,) as for `MedSora(z, t, num_images)` when mixed."""
        model = self.model
        patch = model.config.patch
        grid = (z.shape[3] // patch, z.shape[4] // patch)
        tokens = model.patches.projection(z.flatten(0, 1)).flatten(2).mT.unflatten(0, z.shape[:2])
        exact = torch.promote_types(tokens.dtype, model.patches.projection.weight.dtype)
        x = tokens + position_table(*grid, tokens.shape[-1], z.device, exact)
        time = F.silu(model.time(t))
        features = []
        for block in model.blocks:
            x, spatial = self._block(block, x, time, grid)
            features.append(spatial)
        eps, variance = self._last(x, time, grid)
        return MedSoraOutput(eps=eps, variance=variance, features=features)

    def _last(self, x: Tensor, time: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        last = self.model.final
        shift, scale = linear(last.modulation, time)[:, None, None].chunk(2, dim=-1)
        y = linear(last.linear, last.norm(x) * (1 + scale) + shift)
        y = y.unflatten(3, (2, last.channels, last.patch, last.patch)).unflatten(2, grid)
        return y.permute(4, 0, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).unbind(0)

    def _block(self, block: Block, x: Tensor, time: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        parts = [part[:, None, None] for part in linear(block.modulation, time).chunk(9, dim=-1)]
        y = block.attention_norm(x) * (1 + parts[1]) + parts[0]
        x = x + parts[2] * windowed_attention(block.attention, y)
        y = block.spatial_norm(x) * (1 + parts[4]) + parts[3]
        spatial = x + parts[5] * self._spatial(block.spatial, y, grid)
        y = block.temporal_norm(spatial) * (1 + parts[7]) + parts[6]
        return spatial + parts[8] * self._temporal(block.temporal, y), spatial

    def _spatial(self, part: SpatialMamba, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Eq. 8-9: per row a sequence over frames x columns, per column one over frames x rows."""
        batch, frames, _, width = x.shape
        projected = linear(part.mamba.in_proj, x).unflatten(2, grid)  # (B, n, h̄, w̄, P)
        rows = projected.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # (B·h̄, n·w̄, P)
        columns = projected.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1, 2)  # (B·w̄, n·h̄, P)
        height = self._both_ways(part, rows, frames, grid[1])
        height = height.view(batch, grid[0], frames, grid[1], width).transpose(1, 2).reshape_as(x)
        across = self._both_ways(part, columns, frames, grid[0])
        across = across.view(batch, grid[1], frames, grid[0], width).permute(0, 2, 3, 1, 4).reshape_as(x)
        gated = height * torch.sigmoid(linear(part.gate_height, height))
        return gated + across * torch.sigmoid(linear(part.gate_width, across))

    def _both_ways(self, part: SpatialMamba, tokens: Tensor, frames: int, side: int) -> Tensor:
        forward, backward, undo_forward, undo_backward = spiral_lists(frames, side, part.variant)
        there = linear(part.mamba.out_proj, self.scan(part.mamba, tokens[:, forward]))[:, undo_forward]
        back = linear(part.mamba.out_proj, self.scan(part.mamba, tokens[:, backward]))[:, undo_backward]
        return there + back

    def _temporal(self, part: TemporalMamba, x: Tensor) -> Tensor:
        sequences = x.transpose(1, 2).flatten(0, 1)  # (B·l, n, d)
        y = linear(part.mamba.out_proj, self.scan(part.mamba, linear(part.mamba.in_proj, sequences)))
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The product as PyTorch computes it, not as `medsora.denoiser.linear` does."""
    return F.linear(x, layer.weight, layer.bias)


def windowed_attention(part: LocalAttention, x: Tensor) -> Tensor:
    """Eq. 6-7 window by window: each window's queries beside its own, the previous and the next keys."""
    window, heads, length = part.window, part.heads, x.shape[2]
    if length % window:
        raise ValueError(f"a frame of {length} tokens does not divide into windows of {window}.")
    q, k, v = (
        F.linear(x, weight).unflatten(-1, (heads, -1)).transpose(2, 3).unflatten(3, (-1, window))
        for weight in part.qkv.weight.chunk(3)
    )  # (B, n, heads, windows, window, d / heads)
    q = q / math.sqrt(q.shape[-1])
    k, v = (neighbours(part) for part in (k, v))
    place = torch.arange(3 * window, device=x.device)
    angles = rotary_angles(place, q.shape[-1])
    q, k = rotate(q, angles[-window:]), rotate(k, angles)
    token = torch.arange(length, device=x.device).view(-1, window)
    seen = token[:, :1] - window + place  # (windows, 3·window)
    outside = (
        ((token[:, :, None] - seen[:, None]).abs() > window) | (seen < 0)[:, None] | (seen >= length)[:, None]
    )
    scores = (q @ k.mT).masked_fill(outside, -torch.finfo(q.dtype).max)
    attention = F.dropout(scores.softmax(-1), part.dropout, part.training)
    return (attention @ v).flatten(3, 4).transpose(2, 3).reshape_as(x)


def neighbours(windows: Tensor) -> Tensor:
    """Each window (..., windows, window, d) with the one before and the one after it beside it."""
    padded = F.pad(windows, (0, 0, 0, 0, 1, 1))
    return torch.cat((padded[..., :-2, :, :], windows, padded[..., 2:, :, :]), dim=-2)


def rotary_angles(place: Tensor, features: int) -> Tensor:
    """(places, features)."""
    frequency = 10_000 ** (-torch.arange(0, features, 2, device=place.device) / features)
    angles = place[:, None] * frequency
    return torch.cat((angles, angles), dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on (..., places, features)."""
    left, right = x.chunk(2, dim=-1)
    return (x * angles.cos() + torch.cat((-right, left), dim=-1) * angles.sin()).to(x.dtype)
