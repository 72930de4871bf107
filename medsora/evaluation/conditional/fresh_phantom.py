"""Phantom clips that no model was trained on, rendered once: what is real about the phantom."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.phantom import variant_suffix, write_phantom
from medsora.data.phantom.corpus import LABELS_NAME
from medsora.data.reading.video_io import read_frames
from medsora.data.video_table import read_video_table
from medsora.errors import building
from medsora.runtime.progress_bar import progress_bar

TRAINING_SEED, HELD_OUT_SEED = 1001, 1002  # seeds of corpora, far from the configs'
WORTH_PROCESSES = 32  # clips from which on starting processes pays


def phantom_folder(
    cache: Path,
    count: int,
    frames: int,
    size: int,
    seed: int,
    polyp_size: float = 1.0,
    look: str = PHANTOM_LOOKS[0],
) -> Path:
    """Render phantom clips into a folder of `cache`, unless they are there; return it."""
    folder = cache / f"phantom-{count}x{frames}-{size}px-seed{seed}{variant_suffix(polyp_size, look)}"
    with building(), progress_bar("rendering phantom clips", total=count, unit="clip") as bar:
        workers = 2 if count >= WORTH_PROCESSES else 1
        write_phantom(
            folder,
            count,
            frames,
            size,
            seed,
            workers=workers,
            progress=lambda n, _: bar.update(n - bar.n),
            polyp_size=polyp_size,
            look=look,
        )
    return folder


def phantom_clips(
    cache: Path,
    count: int,
    frames: int,
    size: int,
    seed: int,
    polyp_size: float = 1.0,
    look: str = PHANTOM_LOOKS[0],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Render phantom clips, unless they are there: uint8 (N, F, H, W, 3), labels' numbers and names."""
    folder = phantom_folder(cache, count, frames, size, seed, polyp_size, look)
    videos = sorted(path.name for path in folder.glob("*.mkv"))
    words = {
        name: row["label"]
        for _, name, row in read_video_table(folder / LABELS_NAME, "label", ("label",), videos)
    }
    names = sorted(set(words.values()))
    clips = np.stack([read_frames(folder / video) for video in videos])
    return clips, np.array([names.index(words[video]) for video in videos]), names
