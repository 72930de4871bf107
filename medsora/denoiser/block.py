"""One block: local attention, spatial Mamba, temporal Mamba, each a branch under adaLN-zero.

The switches of an ablation put other mixers in their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from medsora.config.switches import PAPER
from medsora.denoiser.attention import AttentionTables, LocalAttention
from medsora.denoiser.global_attention import SpatialAttention, TemporalAttention
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import FrameScans, SpatialMamba, TemporalMamba
from medsora.kernels.block_steps import Residual, add, add_norm


class Block(nn.Module):
    """Three pre-norm residual branches (§3.1, Figure 2), shifted, scaled and gated by the diffusion time.

    `switches` are those of `medsora.config.switches`; a branch that they leave out has no parameters.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        window: int,
        dropout: float,
        variant: int,
        mamba: dict[str, Any],
        switches: Mapping[str, Any] = PAPER,
    ) -> None:
        super().__init__()
        self.variant, self.backend = variant, mamba["backend"]
        local, temporal = switches["local_attention"], switches["temporal"]
        self.modulation = Linear(width, (9 - 3 * (not local) - 3 * (temporal == "none")) * width)
        self.attention_norm = nn.LayerNorm(width) if local else None
        self.attention = LocalAttention(width, heads, window, dropout, self.backend) if local else None
        self.spatial_norm = nn.LayerNorm(width)
        if switches["spatial"] == "mamba":
            self.spatial = SpatialMamba(
                width, variant, axes=switches["axes"], fusion=switches["fusion"], **mamba
            )
        else:
            self.spatial = SpatialAttention(width, **mamba)
        self.temporal_norm = nn.LayerNorm(width) if temporal != "none" else None
        kinds = {"mamba": TemporalMamba, "attention": TemporalAttention}
        self.temporal = kinds[temporal](width, **mamba) if temporal != "none" else None

    def forward(
        self,
        x: Tensor | Residual,
        modulation: Tensor,
        scans: Sequence[FrameScans],
        tables: AttentionTables | None = None,
    ) -> tuple[Tensor | Residual, Tensor]:
        """Tokens after the block and, for the flow alignment, after its spatial part (§3.2).

        While a GPU's kernels sample, the former are a `Residual`, which the next norm adds up.

        Args:
            x: (B, n, l, d), or what another block returned.
            modulation: `self.modulation` of the activated time embedding (B or 1, 1, 9·d), or (B, n, 9·d) for
                one timestep per latent frame; 3·d less for every branch that is left out.
            scans: `frame_scans` for `self.variant`.
            tables: rotary tables of `self.attention`; default: read from the cache.
        """
        width = self.modulation.in_features
        branches = iter(rearrange(modulation, "B n (branch part d) -> branch part B n 1 d", part=3, d=width))
        if self.attention is not None:
            shift, scale, gate = next(branches)
            x, y = add_norm(x, shift, scale, self.attention_norm, self.backend)
            x = Residual(x, self.attention(y, tables), gate)
        shift, scale, gate = next(branches)
        x, y = add_norm(x, shift, scale, self.spatial_norm, self.backend)
        x = Residual(x, self.spatial(y, scans), gate)
        if self.temporal is None:
            x = x.sum()
            return x, x
        shift, scale, gate = next(branches)
        x, y = add_norm(x, shift, scale, self.temporal_norm, self.backend)
        if isinstance(self.temporal, TemporalMamba):
            y, mean_square = self.temporal.branch(y, scans)
        else:
            y, mean_square = self.temporal(y, scans), None
        return add(x, y, gate, self.backend, mean_square), x
