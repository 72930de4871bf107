"""One block: local attention, spatial Mamba and temporal Mamba, each a branch under adaLN-zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from medsora.denoiser.attention import AttentionTables, LocalAttention
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import FrameScans, SpatialMamba, TemporalMamba
from medsora.kernels.block_steps import add_norm, norm


class Block(nn.Module):
    """Three pre-norm residual branches (§3.1, Figure 2), shifted, scaled and gated by the diffusion time."""

    def __init__(
        self, width: int, *, heads: int, window: int, dropout: float, variant: int, mamba: dict[str, Any]
    ) -> None:
        super().__init__()
        self.backend = mamba["backend"]
        self.modulation = Linear(width, 9 * width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = LocalAttention(width, heads, window, dropout, self.backend)
        self.spatial_norm = nn.LayerNorm(width)
        self.spatial = SpatialMamba(width, variant, **mamba)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal = TemporalMamba(width, **mamba)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        scans: Sequence[FrameScans],
        tables: AttentionTables | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens after the block and, for the flow alignment, after its spatial part (§3.2).

        Args:
            x: (B, n, l, d).
            modulation: `self.modulation` of the activated time embedding (B or 1, 1, 9·d), or (B, n, 9·d) for
                one timestep per latent frame.
            scans: `frame_scans` for the variant of `self.spatial`.
            tables: of `self.attention`; default: it reads them from the cache.
        """
        (
            (attention_shift, attention_scale, attention_gate),
            (spatial_shift, spatial_scale, spatial_gate),
            (temporal_shift, temporal_scale, temporal_gate),
        ) = rearrange(modulation, "B n (branch part d) -> branch part B n 1 d", branch=3, part=3)

        y = norm(x, attention_shift, attention_scale, self.attention_norm, self.backend)
        y = self.attention(y, tables)
        x, y = add_norm(x, y, attention_gate, spatial_shift, spatial_scale, self.spatial_norm, self.backend)
        y = self.spatial(y, scans)
        x, y = add_norm(x, y, spatial_gate, temporal_shift, temporal_scale, self.temporal_norm, self.backend)
        return torch.addcmul(x, temporal_gate, self.temporal(y, scans)), x
