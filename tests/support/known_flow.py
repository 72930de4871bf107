"""Videos whose flow is known, and stand-ins for the frozen networks that count their calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shifting_video(frames: int, height: int, width: int, dx: int, dy: int) -> Tensor:
    """A smooth random texture (1, frames, 3, height, width) in [-1, 1] moving by (dx, dy) px per frame."""
    generator = torch.Generator().manual_seed(0)
    room_y, room_x = abs(dy) * frames, abs(dx) * frames
    size = (height + 2 * room_y, width + 2 * room_x)
    cells = (size[0] // 8, size[1] // 8)
    texture = F.interpolate(torch.rand(1, 3, *cells, generator=generator), size=size, mode="bicubic")
    views = []
    for k in range(frames):
        y, x = room_y - k * dy, room_x - k * dx
        views.append(texture[0, :, y : y + height, x : x + width])
    return torch.stack(views).clamp(0, 1).mul(2).sub(1).unsqueeze(0)


class CountingEstimator(nn.Module):
    """Gives every pair a flow that depends on its frames, and counts calls and clips."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.clips = 0

    def forward(self, video: Tensor) -> Tensor:
        self.calls += 1
        self.clips += len(video)
        return 3 * (video[:, 1:, :2] - video[:, :-1, 1:])


class PoolingEncoder(nn.Module):
    """Patch tokens that are the patch's mean colour, times 1 + the layer's number; counts pictures."""

    depth, untrained = 12, True

    def __init__(self, patch: int = 4) -> None:
        super().__init__()
        self.patch, self.calls, self.pictures, self.requested_layers = patch, 0, 0, []

    def forward(self, pictures: Tensor, layers: list[int]) -> list[Tensor]:
        self.calls += 1
        self.pictures += len(pictures)
        self.requested_layers.append(list(layers))
        pooled = F.avg_pool2d(pictures, self.patch)
        return [pooled * (1 + layer) for layer in layers]
