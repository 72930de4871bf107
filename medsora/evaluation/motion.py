"""How much a set of clips moves: the magnitude of its optical flow, by OpenCV's DIS, which needs no weights.

A model that hardly moves scores well on most published metrics, so every report shows this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flow_prior import DisEstimator
from medsora.data.pixels import frames_to_video


def flow_magnitudes(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return each clip's mean flow magnitude in pixels per frame; clips are uint8 (F, H, W, 3), F > 1."""
    estimator = DisEstimator()
    means = []
    for clip in clips:
        with torch.no_grad():
            flow = estimator(frames_to_video(clip)[None])
        means.append(float(flow.norm(dim=2).mean()))
    return np.array(means)
