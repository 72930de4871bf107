"""Motion of a set of clips by optical flow: RAFT if its weights are available, else OpenCV's DIS.

A model that hardly moves scores well on most published metrics (a still image has Frame Consistency 1), so
every report shows this. Lengths are pixels per frame at the size of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from medsora.data.reading.pixels import frames_to_video
from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.metrics.distributions import circular_distance, histogram_distance, sample_distance
from medsora.evaluation.metrics.measure import Measure, Metric, weighted_mean
from medsora.flow_prior import DisEstimator

SPEEDS = np.concatenate([[0.0], np.geomspace(0.02, 200.0, 80)])  # px per frame
DIRECTIONS = 36
FLICKER_BLOCKS = 8
DIS_NOTE = (
    "optical flow by OpenCV's DIS differs from RAFT's by up to 2.6 times on generated clips: compare only "
    "values of the same estimator"
)
DIS_IDENTITY = {"flow": "OpenCV DIS, medium preset, finest scale 0", "opencv": cv2.__version__}


def flow_magnitudes(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return each clip's mean flow magnitude in pixels per frame; clips are uint8 (F, H, W, 3), F > 1."""
    estimator = DisEstimator()
    with torch.no_grad():
        flows = (estimator(frames_to_video(clip)[None]) for clip in clips)
        return np.array([float(flow.norm(dim=2).mean()) for flow in flows])


class MotionExtractor(Extractor):
    """Per clip: histograms of flow magnitude and direction; mean magnitude, warping error, flicker, more.

    `estimator` maps a video (B, F, 3, H, W) in [-1, 1] to flow (B, F-1, 2, H, W); `identity` names it.
    """

    width = len(SPEEDS) - 1 + DIRECTIONS + 4
    title, min_frames = "the metric motion", 3

    def __init__(
        self,
        estimator: Callable[[Tensor], Tensor] | None = None,
        identity: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.estimator, self.device = estimator or DisEstimator(), device
        self.identity = {"name": "motion", "version": 1, **(identity or DIS_IDENTITY)}

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 1, width) for uint8 (B, F, H, W, 3)."""
        video = frames_to_video(clips).to(self.device)
        forward = self.estimator(video).cpu().numpy()
        backward = self.estimator(video.flip(1)).flip(1).cpu().numpy()
        rows = [
            self._of_clip(clip, there, back)
            for clip, there, back in zip(clips, forward, backward, strict=True)
        ]
        return np.stack(rows)[:, None].astype(np.float32)

    def _of_clip(self, clip: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        magnitude = np.hypot(forward[:, 0], forward[:, 1])
        speeds = np.histogram(magnitude.clip(max=SPEEDS[-1]), SPEEDS)[0] / magnitude.size
        angle = np.arctan2(forward[:, 1], forward[:, 0])
        # each pixel counts by how far it moves: the direction of a standing pixel is noise
        directions = np.histogram(angle, DIRECTIONS, (-np.pi, np.pi), weights=magnitude)[0] / magnitude.size
        visible = ~occluded(forward, backward)
        error = warping_error(clip, forward, visible)
        single = [magnitude.mean(), error, flicker(clip), 1 - visible.mean()]
        return np.concatenate([speeds, directions, single])


class MotionMeasure(Measure):
    """Compares how two sets move: the flow's distributions, and two faults of motion, each against real."""

    distances = (
        Metric("flow_magnitude_distance", "flow magnitude, Wasserstein-1", "lower", "px/frame"),
        Metric("flow_direction_distance", "flow direction, circular Wasserstein-1", "lower", "degrees"),
        Metric("warping_error_distance", "flow-warping error, Wasserstein-1 over clips", "lower", "of 255"),
        Metric("flicker_distance", "flicker, Wasserstein-1 over clips", "lower", "of 255"),
    )
    scores = (
        Metric("flow_magnitude", "mean flow magnitude", "as real", "px/frame"),
        Metric("warping_error", "flow-warping error, occlusions left out", "as real", "of 255"),
        Metric("flicker", "flicker", "as real", "of 255"),
        Metric("occluded", "share of pixels left out as occluded", "as real"),
    )

    def __init__(self, extractor: MotionExtractor | None = None) -> None:
        super().__init__(extractor or MotionExtractor())

    def compare(self, real: Features, fake: Features) -> dict[str, float]:
        """Return the distances."""
        one, two = (_parts(features) for features in (real, fake))

        def over_clips(key: str) -> float:
            return sample_distance(one[key], real.weights, two[key], fake.weights)

        return {
            "flow_magnitude_distance": histogram_distance(
                real.weights @ one["speeds"], fake.weights @ two["speeds"], SPEEDS
            ),
            "flow_direction_distance": circular_distance(
                real.weights @ one["directions"], fake.weights @ two["directions"]
            ),
            "warping_error_distance": over_clips("warping_error"),
            "flicker_distance": over_clips("flicker"),
        }

    def describe(self, features: Features) -> dict[str, float]:
        """Return the set's own means over clips."""
        parts = _parts(features)
        return {metric.key: weighted_mean(parts[metric.key], features.weights) for metric in self.scores}

    @staticmethod
    def histograms(features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Return the set's share of pixels per bin of `SPEEDS`, and its motion per direction (sum 1 or 0)."""
        parts = _parts(features)
        speeds, directions = features.weights @ parts["speeds"], features.weights @ parts["directions"]
        return speeds / features.weights.sum(), directions / max(directions.sum(), 1e-12)


def _parts(features: Features) -> dict[str, np.ndarray]:
    values = features.per_clip().astype(np.float64)
    speeds, rest = np.split(values, [len(SPEEDS) - 1], axis=1)
    directions, single = np.split(rest, [DIRECTIONS], axis=1)
    names = ("flow_magnitude", "warping_error", "flicker", "occluded")
    return {"speeds": speeds, "directions": directions, **dict(zip(names, single.T, strict=True))}


def occluded(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return bool (P, H, W): pixels whose flow and the flow back disagree, or that leave the picture.

    `forward` (P, 2, H, W) leads from frame k to k+1, `backward` from k+1 to k. The threshold is that of
    Sundaram, Brox and Keutzer (2010): |f + b|² > 0.01 (|f|² + |b|²) + 0.5 px².
    """
    hidden = np.empty(forward[:, 0].shape, bool)
    for k, (there, back) in enumerate(zip(forward, backward, strict=True)):
        x, y = _targets(there)
        returned = np.stack([_sampled(part, x, y) for part in back])
        gap = np.square(there + returned).sum(0)
        scale = np.square(there).sum(0) + np.square(returned).sum(0)
        height, width = gap.shape
        outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
        hidden[k] = outside | (gap > 0.01 * scale + 0.5)
    return hidden


def warping_error(clip: np.ndarray, flow: np.ndarray, counted: np.ndarray) -> float:
    """Return the mean |frame k - frame k+1 fetched along the flow| over counted pixels, in levels of 255.

    Args:
        clip: uint8 (F, H, W, 3).
        flow: (F-1, 2, H, W) in pixels (right, down), from frame k to frame k+1.
        counted: bool (F-1, H, W). NaN if no pixel counts.
    """
    total, pixels = 0.0, 0
    for one, two, field, mask in zip(clip, clip[1:], flow, counted, strict=False):
        fetched = _sampled(two.astype(np.float32), *_targets(field))
        difference = np.abs(fetched - one).mean(-1)
        total += float(difference[mask].sum())
        pixels += int(mask.sum())
    return total / pixels if pixels else float("nan")


def flicker(clip: np.ndarray) -> float:
    """Return the mean absolute second difference over time of 8x8 block means, in grey levels of 255.

    Steady light and smooth motion have nearly none; brightness that jumps from frame to frame has much.
    """
    size = (FLICKER_BLOCKS, FLICKER_BLOCKS)
    blocks = np.stack([cv2.resize(f.astype(np.float32), size, interpolation=cv2.INTER_AREA) for f in clip])
    return float(np.abs(np.diff(blocks, n=2, axis=0)).mean())


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = flow.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x + flow[0].astype(np.float32), y + flow[1].astype(np.float32)


def _sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
