"""Embeddings: patches of latents with their position in the frame, and the diffusion time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medsora.tables import kept_table

TIME_FEATURES = 256
MAX_PERIOD = 10_000


def sinusoids(positions: Tensor, features: int) -> Tensor:
    """Sines and cosines of `positions` (...,) at geometrically falling frequencies, `(..., features)`."""
    half = features // 2
    exponents = torch.arange(half, dtype=positions.dtype, device=positions.device) / half
    angles = positions.unsqueeze(-1) * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@kept_table
def position_table(rows: int, cols: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The fixed 2-D sine-cosine embedding, `(rows * cols, width)`.

    Half the features name the row, half the column. Rebuilt per size and never saved, so that one checkpoint
    serves several sizes.
    """
    row = sinusoids(torch.arange(rows, dtype=torch.float64), width // 2)
    col = sinusoids(torch.arange(cols, dtype=torch.float64), width // 2)
    table = torch.cat((row[:, None].expand(-1, cols, -1), col.expand(rows, -1, -1)), dim=-1)
    return table.flatten(0, 1).to(device, dtype)


class PatchEmbedding(nn.Module):
    """Latents (B, n, C, h, w) -> tokens (B, n, l, d), l = (h / patch)·(w / patch), row by row."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, n, C, H, W) -> tokens (B, n, rows·cols, d)."""
        patches = self.projection(z.flatten(0, 1))
        tokens = patches.flatten(2).transpose(1, 2).unflatten(0, z.shape[:2])
        # In the weights' precision, not autocast's: what follows adds to these tokens in every branch.
        dtype = torch.promote_types(tokens.dtype, self.projection.weight.dtype)
        return tokens + position_table(*patches.shape[2:], tokens.shape[-1], z.device, dtype)


class TimeEmbedding(nn.Module):
    """Diffusion timesteps of any shape (...) -> (..., d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps of any shape -> features (…, d)."""
        return self.mlp(sinusoids(t.float(), TIME_FEATURES).to(self.mlp[0].weight.dtype))
