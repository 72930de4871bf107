"""Optical flow of a video by the estimator that a config names (§3.2, step 1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from medsora.flow_prior.choices import ESTIMATORS
from medsora.flow_prior.dis import DisEstimator
from medsora.flow_prior.raft import VARIANTS, RaftEstimator


class ExactFlow(nn.Module):
    """The estimator of data that brings its own flow; it has nothing to estimate with."""

    def forward(self, video: Tensor) -> Tensor:
        """Refuse: the exact flow belongs in the batch."""
        raise ValueError(
            "the flow estimator 'exact' needs the flow in the batch, and this data has none: "
            "choose raft_large, raft_small or dis."
        )


def build_estimator(name: str, weights: str | Path | None = None) -> nn.Module:
    """Return the estimator `name`: video (B, F+1, 3, H, W) in [-1, 1] to flow (B, F, 2, H, W) in pixels.

    Args:
        name: "raft_large", "raft_small", "dis" (OpenCV, no weights) or "exact" (the flow is in the batch).
        weights: for RAFT, see `RaftEstimator`.

    Raises:
        ValueError: unknown name, or weights for an estimator that has none.
        OSError: weights that could not be loaded.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"flow estimator {name!r} is unknown: expected one of {', '.join(ESTIMATORS)}.")
    if name in VARIANTS:
        return RaftEstimator(name, weights)
    if weights is not None:
        raise ValueError(f"the flow estimator {name!r} has no weights: leave {weights} out or choose RAFT.")
    return DisEstimator() if name == "dis" else ExactFlow()


def estimate_flow(
    video: Tensor,
    estimator: str | Callable[[Tensor], Tensor] = "raft_large",
    weights: str | Path | None = None,
) -> Tensor:
    """Return the flow of every pair of consecutive frames (Eq. 12).

    Args:
        video: (B, F+1, 3, H, W) in [-1, 1].
        estimator: one from `build_estimator`, built once for many calls; a name builds it for this call.
        weights: for a RAFT that is named.

    Returns:
        (B, F, 2, H, W) float32 in pixels: where the content of frame i's pixel is in frame i+1, (x, y).

    Raises:
        ValueError: the video has another shape or range (as uint8 or 0..255), or a bad `estimator`.
        OSError: weights that could not be loaded.
    """
    _check_video(video)
    if isinstance(estimator, str):
        estimator = build_estimator(estimator, weights).to(video.device)
    return estimator(video)


def _check_video(video: Tensor) -> None:
    """Raise `ValueError` unless `video` is (B, F+1, 3, H, W), at least two frames, with values in [-1, 1].

    Values on a GPU are taken as they are: looking at them would make the host wait.
    """
    if video.ndim != 5 or video.shape[1] < 2 or video.shape[2] != 3:
        raise ValueError(
            f"a video of shape {tuple(video.shape)} has no optical flow: "
            "expected (B, F+1, 3, H, W) with at least two frames."
        )
    seen = video.numel() and not video.is_cuda
    if not torch.is_floating_point(video) or (seen and float(video.abs().amax()) > 1.01):
        raise ValueError(
            f"the video's values ({video.dtype}) leave [-1, 1]: expected pixels / 127.5 - 1 as floats."
        )
