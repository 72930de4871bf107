"""Optical flow as pictures: direction becomes hue, speed becomes brightness (Eq. 13)."""

from __future__ import annotations

from math import tau

import torch
from torch import Tensor


def flow_to_rgb(flow: Tensor) -> Tensor:
    """Colour a flow by Eq. 13.

    Hue is the direction over the full circle, from +x (red) over +y, downwards in the picture (yellow-green),
    and -x (cyan) to -y (violet); saturation is 1; value is the magnitude over the frame's largest. A frame
    without motion is black.

    Args:
        flow: (B, F, 2, H, W) in pixels, (x, y).

    Returns:
        (B, F, 3, H, W) float32 RGB in [0, 1].
    """
    u, v = flow.float().unbind(dim=-3)
    magnitude = torch.hypot(u, v)
    largest = magnitude.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    hue = torch.atan2(v, u) / tau  # in turns, (-1/2, 1/2]
    return hsv_to_rgb(hue, torch.ones_like(hue), magnitude / largest)


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert hue in turns, over any number of circles, saturation and value in [0, 1], each (..., H, W).

    Returns:
        (..., 3, H, W) RGB in [0, 1].
    """
    # Each channel is a trapezoid over the six sectors of the colour circle, shifted by a third of it.
    sector = (hue.unsqueeze(-3) * 6 + hue.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)) % 6
    absent = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value.unsqueeze(-3) * (1 - saturation.unsqueeze(-3) * absent)
