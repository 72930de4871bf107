"""A small U-Net (Ronneberger et al., MICCAI 2015) for polyp segmentation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64, 128)  # channels by level; each level halves the sides
MULTIPLE_PX = 2 ** (len(WIDTHS) - 1)  # both sides are multiples of this


class UNet(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, H, W) that a pixel shows a polyp.

    As published, except that GroupNorm follows each convolution, borders are padded, and bilinear
    interpolation goes up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(before, width) for before, width in pairwise((3, *WIDTHS)))
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in pairwise(WIDTHS))
        self.head = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> logits (B, H, W)."""
        features, skipped = self.down[0](pictures), []
        for block in self.down[1:]:
            skipped.append(features)
            features = block(functional.max_pool2d(features, 2))
        for block, skip in zip(reversed(self.up), reversed(skipped), strict=True):
            larger = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = block(torch.cat([skip, larger], 1))
        return self.head(features)[:, 0]


def _block(before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
    return nn.Sequential(*layers)
