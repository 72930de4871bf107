"""Small folders of clips for the evaluation's tests: smooth drifting patterns, coded without loss."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from medsora.data.reading.video_io import write_video


def drifting_clip(seed: int, frames: int = 8, size: int = 32) -> np.ndarray:
    """Return uint8 (frames, size, size, 3): a smooth random picture that drifts a pixel or two per frame."""
    random = np.random.default_rng(seed)
    room = size + 4 * frames
    picture = cv2.GaussianBlur(random.normal(size=(room, room, 3)), (0, 0), 2.0)
    picture = 127 + picture / picture.std() * random.uniform(30, 50)
    step = random.uniform(-2, 2, size=2)
    centre = room / 2 - size / 2
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    clip = [
        cv2.remap(
            picture.astype(np.float32),
            (columns + centre + step[0] * k).astype(np.float32),
            (rows + centre + step[1] * k).astype(np.float32),
            cv2.INTER_LINEAR,
        )
        for k in range(frames)
    ]
    return np.stack(clip).round().clip(0, 255).astype(np.uint8)


def bordered(frames: np.ndarray) -> np.ndarray:
    """Put black borders around frames: 4 pixels at the top, 6 at the bottom, 10 left, 2 right."""
    return np.pad(frames, [(0, 0), (4, 6), (10, 2), (0, 0)])


def write_clips(folder: Path, seeds: range, frames: int = 8, size: int = 32) -> Path:
    """Write one lossless video per seed and return the folder."""
    for seed in seeds:
        write_video(folder / f"clip-{seed}.mkv", drifting_clip(seed, frames, size), 10, lossless=True)
    return folder
