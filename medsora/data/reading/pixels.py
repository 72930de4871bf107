"""The one home of the pixel range: stored frames are 0..255, the models see [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def frames_to_video(frames: np.ndarray) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float().div_(127.5).sub_(1.0)


def video_to_frames(video: Tensor) -> np.ndarray:
    """Inverse of `frames_to_video`; clamps what lies outside and rounds to the nearest grey level."""
    levels = video.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
