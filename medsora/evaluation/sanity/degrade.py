"""Ways to make real clips worse, each in one respect. Clips are uint8 (F, H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def blurred(clip: np.ndarray, sigma: float) -> np.ndarray:
    """Blur every frame by a Gaussian of `sigma` pixels."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip])


def shuffled(clip: np.ndarray, seed: int) -> np.ndarray:
    """Put the frames into a random order: every picture is real, the motion is not."""
    return clip[np.random.default_rng(seed).permutation(len(clip))]


def frozen(clip: np.ndarray) -> np.ndarray:
    """Repeat the first frame: every picture is real, nothing moves."""
    return np.repeat(clip[:1], len(clip), axis=0)


def noisy(clip: np.ndarray, seed: int) -> np.ndarray:
    """Return uniform noise of the clip's shape."""
    return np.random.default_rng(seed).integers(0, 256, clip.shape, dtype=np.uint8)


def mean_clip(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of all clips, frame by frame: the best guess that needs no model of anything."""
    return np.mean(np.stack(clips), axis=0).round().astype(np.uint8)
