"""Self-attention in the places of the spatial and the temporal Mamba: the control of Figure 1 and Eq. 11.

Everything else of a block stays. Heads are as wide as Mamba's (`headdim`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from medsora.denoiser.attention import attend, rotary_tables, rotated
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import FrameScans, SpatialMamba, TemporalMamba


class SelfAttention(nn.Module):
    """Multi-head attention of every token to every token of its sequence, with rotary positions.

    It has as many heads of width `headdim` as give about the parameters of the module that `replaced` builds.
    """

    def __init__(self, width: int, headdim: int, replaced: Callable[[], nn.Module]) -> None:
        super().__init__()
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in replaced().parameters())
        self.heads = max(1, round(parameters / (4 * width * headdim)))
        self.qkv = Linear(width, 3 * self.heads * headdim, bias=False)
        self.out_proj = Linear(self.heads * headdim, width, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        """Sequences (..., L, d) -> (..., L, d)."""
        qkv = self.qkv(x).flatten(end_dim=-3)
        qkv = rearrange(qkv, "N L (three heads p) -> three N heads L p", three=3, heads=self.heads)
        exact = torch.promote_types(qkv.dtype, torch.float32)
        tables = rotary_tables(x.shape[-2], qkv.shape[-1], 0, x.device, exact)
        y = attend(*rotated(qkv, *tables))
        return self.out_proj(rearrange(y, "N heads L p -> N L (heads p)")).view_as(x)


class SpatialAttention(SelfAttention):
    """Every token attends to all tokens of its frame (the spatial self-attention of Eq. 11)."""

    def __init__(self, width: int, **mamba: int | str) -> None:
        super().__init__(width, mamba["headdim"], partial(SpatialMamba, width, 0, **mamba))

    def forward(self, x: Tensor, scans: Sequence[FrameScans] = ()) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d); `scans` is ignored."""
        return self.attend(x)


class TemporalAttention(SelfAttention):
    """Every token attends to the tokens at its position in all frames (the temporal one of Eq. 11)."""

    def __init__(self, width: int, **mamba: int | str) -> None:
        super().__init__(width, mamba["headdim"], partial(TemporalMamba, width, **mamba))

    def forward(self, x: Tensor, scans: Sequence[FrameScans] = ()) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d) among the frames that `scans` put together; default: all."""
        parts = x.split([part.frames for part in scans] or x.shape[1], dim=1)
        lengths = [part.temporal.shape[-1] for part in scans] or [x.shape[1]]
        return torch.cat([self._over_time(*each) for each in zip(parts, lengths, strict=True)], dim=1)

    def _over_time(self, x: Tensor, length: int) -> Tensor:
        """Attention within each `length` successive frames of x (B, frames, l, d)."""
        y = self.attend(rearrange(x, "B (clip f) l d -> B clip l f d", f=length))
        return rearrange(y, "B clip l f d -> B (clip f) l d")
