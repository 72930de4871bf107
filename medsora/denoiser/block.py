"""One block: local attention, spatial Mamba and temporal Mamba, each a branch under adaLN-zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medsora.denoiser.attention import LocalAttention
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import FrameScans, SpatialMamba, TemporalMamba


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Three pre-norm residual branches (§3.1, Figure 2), shifted, scaled and gated by the diffusion time."""

    def __init__(
        self, width: int, *, heads: int, window: int, dropout: float, variant: int, mamba: dict[str, Any]
    ) -> None:
        super().__init__()
        self.modulation = Linear(width, 9 * width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = LocalAttention(width, heads, window, dropout)
        self.spatial_norm = nn.LayerNorm(width)
        self.spatial = SpatialMamba(width, variant, **mamba)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal = TemporalMamba(width, **mamba)

    def forward(self, x: Tensor, modulation: Tensor, scans: Sequence[FrameScans]) -> tuple[Tensor, Tensor]:
        """Tokens after the block and, for the flow alignment, after its spatial part (§3.2).

        Args:
            x: (B, n, l, d).
            modulation: `self.modulation` of the activated time embedding (B or 1, 1, 9·d), or (B, n, 9·d) for
                one timestep per latent frame.
            scans: `frame_scans` for the variant of `self.spatial`.
        """
        (
            (attention_shift, attention_scale, attention_gate),
            (spatial_shift, spatial_scale, spatial_gate),
            (temporal_shift, temporal_scale, temporal_gate),
        ) = modulation.unflatten(-1, (3, 3, 1, -1)).permute(2, 3, 0, 1, 4, 5)

        y = self.attention(modulate(self.attention_norm(x), attention_shift, attention_scale))
        x = torch.addcmul(x, attention_gate, y)
        y = self.spatial(modulate(self.spatial_norm(x), spatial_shift, spatial_scale), scans)
        x = torch.addcmul(x, spatial_gate, y)
        spatial = x
        y = self.temporal(modulate(self.temporal_norm(x), temporal_shift, temporal_scale), scans)
        return torch.addcmul(x, temporal_gate, y), spatial
