"""Optical flow without weights: OpenCV's Dense Inverse Search, for machines and tests without RAFT."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor, nn

MIN_SIDE_PX = 12  # OpenCV refuses smaller pictures


class DisEstimator(nn.Module):
    """Dense Inverse Search on grey frames, down to full resolution; runs on the CPU wherever the video is."""

    def __init__(self) -> None:
        super().__init__()
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # The preset stops at half resolution, which at 64 pixels costs a third of the accuracy.
        self.search.setFinestScale(0)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Return the flow (B, F, 2, H, W) in pixels of a video (B, F+1, 3, H, W) in [-1, 1]."""
        if min(video.shape[-2:]) < MIN_SIDE_PX:
            raise ValueError(
                f"frames of {video.shape[-2]}x{video.shape[-1]} pixels are too small for the flow estimator "
                f"'dis': expected at least {MIN_SIDE_PX} per side."
            )
        pixels = video.float().add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)
        flows = [self._flow_of_clip(clip) for clip in pixels.permute(0, 1, 3, 4, 2).numpy()]
        return torch.from_numpy(np.stack(flows)).to(video.device)

    def _flow_of_clip(self, frames: np.ndarray) -> np.ndarray:
        grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
        return np.stack([self.search.calc(one, two, None).transpose(2, 0, 1) for one, two in pairwise(grey)])
