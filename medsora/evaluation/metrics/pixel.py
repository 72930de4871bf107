"""Colours and sharpness of single frames, metrics that need no weights."""

from __future__ import annotations

import cv2
import numpy as np

from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.metrics.distributions import histogram_distance, sample_distance
from medsora.evaluation.metrics.measure import Measure, Metric, weighted_mean

BINS = 64
EDGES = np.linspace(0, 256, BINS + 1)
MAX_BLACK = 16  # maximum pixel value (0-255) of black
MAX_FEATURELESS = -1.5  # sharpness; -2 is a frame of one colour


class PixelExtractor(Extractor):
    """Per clip: a histogram of each colour channel, and the sharpness of its frames."""

    width = 3 * BINS + 1
    identity = {"name": "pixel", "version": 1, "bins": BINS}  # noqa: RUF012

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 1, width) for uint8 (B, F, H, W, 3)."""
        rows = []
        for clip in clips:
            levels = [np.bincount(clip[..., c].ravel(), minlength=256) for c in range(3)]
            histograms = np.concatenate([level.reshape(BINS, -1).sum(1) for level in levels])
            rows.append([*(histograms / clip[..., 0].size), sharpness(clip)])
        return np.array(rows, dtype=np.float32)[:, None]


def black(features: Features) -> np.ndarray:
    """Return bool (clips,): every pixel is black, up to what coding with loss adds."""
    histograms = features.per_clip()[:, :-1].reshape(-1, 3, BINS)
    return histograms[..., EDGES[1:] <= MAX_BLACK].sum(-1).min(-1) > 1 - 1e-6


def featureless(features: Features) -> np.ndarray:
    """Return bool (clips,): frames of one colour, or so smooth that they show nothing."""
    return features.per_clip()[:, -1] < MAX_FEATURELESS


class PixelMeasure(Measure):
    """Compares the colours and the sharpness of two sets."""

    distances = (
        Metric("colour_distance", "colour histograms, Wasserstein-1, mean of R, G, B", "lower", "of 255"),
        Metric("sharpness_distance", "sharpness, Wasserstein-1 over clips", "lower", "decades"),
    )
    scores = (
        Metric("sharpness", "sharpness (log10 variance of the Laplacian)", "as real"),
        Metric("brightness", "mean of all colour values", "as real", "of 255"),
    )

    def __init__(self) -> None:
        super().__init__(PixelExtractor())

    def compare(self, real: Features, fake: Features) -> dict[str, float]:
        """Return the distances."""
        one, two = real.per_clip(), fake.per_clip()
        colours = [
            histogram_distance(real.weights @ one[:, part], fake.weights @ two[:, part], EDGES)
            for part in (slice(c * BINS, (c + 1) * BINS) for c in range(3))
        ]
        return {
            "colour_distance": float(np.mean(colours)),
            "sharpness_distance": sample_distance(one[:, -1], real.weights, two[:, -1], fake.weights),
        }

    def describe(self, features: Features) -> dict[str, float]:
        """Return the set's own means."""
        values = features.per_clip()
        middles = np.tile((EDGES[:-1] + EDGES[1:] - 1) / 2, 3) / 3
        return {
            "sharpness": weighted_mean(values[:, -1], features.weights),
            "brightness": weighted_mean(values[:, :-1] @ middles, features.weights),
        }


def sharpness(clip: np.ndarray) -> float:
    """Return the mean of log10(1e-2 + variance of the grey Laplacian) over frames; uint8 (F, H, W, 3)."""
    grey = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clip)
    variances = [cv2.Laplacian(frame, cv2.CV_64F, ksize=1).var() for frame in grey]
    return float(np.log10(np.array(variances) + 1e-2).mean())
