"""Phantom clips that no model was trained on, rendered once, and a classifier of them, trained once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.labels import Labels, read_labels
from medsora.data.phantom import variant_suffix, write_phantom
from medsora.data.phantom.corpus import LABELS_NAME
from medsora.data.reading.video_io import read_frames
from medsora.errors import bad_input_from_errors
from medsora.evaluation.conditional.classifier import FrameClassifier, train_classifier
from medsora.flow_prior.weights import load_strictly, read_weights, save_weights
from medsora.runtime.files import written_beside
from medsora.runtime.progress_bar import progress_bar

TRAINING_SEED, HELD_OUT_SEED = 1001, 1002  # seeds of corpora, far from the configs'
CLASSIFIER_RECIPE = 2  # raise when `train_classifier` gives another classifier
MIN_CLIPS_FOR_PROCESSES = 32  # with fewer, starting processes takes longer than it saves
DEFAULT_PHANTOM = (1.0, PHANTOM_LOOKS[0])  # the default phantom: relative width of its polyps, and its look


def phantom_folder(
    cache: Path, count: int, frames: int, size: int, seed: int, phantom: tuple[float, str] = DEFAULT_PHANTOM
) -> Path:
    """Render phantom clips into a folder of `cache`, unless they are there; return it."""
    polyp_size, look = phantom
    folder = cache / f"phantom-{count}x{frames}-{size}px-seed{seed}{variant_suffix(polyp_size, look)}"
    with bad_input_from_errors(), progress_bar("rendering phantom clips", total=count, unit="clip") as bar:
        write_phantom(
            folder,
            count,
            frames,
            size,
            seed,
            workers=2 if count >= MIN_CLIPS_FOR_PROCESSES else 1,
            progress=lambda n, _: bar.update(n - bar.n),
            polyp_size=polyp_size,
            look=look,
        )
    return folder


def phantom_clips(
    cache: Path, count: int, frames: int, size: int, seed: int, phantom: tuple[float, str] = DEFAULT_PHANTOM
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Render phantom clips, unless they are there: uint8 (N, F, H, W, 3), labels' numbers and names."""
    folder = phantom_folder(cache, count, frames, size, seed, phantom)
    labels = _labels(folder)
    clips = np.stack([read_frames(folder / video, intact=True) for video in labels.of_video])
    return clips, np.array([*labels.of_video.values()]), list(labels.names)


def phantom_classifier(
    cache: Path,
    count: int,
    frames: int,
    size: int,
    epochs: int,
    phantom: tuple[float, str] = DEFAULT_PHANTOM,
    device: torch.device | str = "cpu",
) -> FrameClassifier:
    """Train a classifier of `count` phantom clips, unless it is there; return it."""
    folder = phantom_folder(cache, count, frames, size, TRAINING_SEED, phantom)
    weights = folder / f"judge-{CLASSIFIER_RECIPE}-{epochs}.safetensors"
    if weights.is_file():
        classifier = FrameClassifier(len(_labels(folder).names))
        load_strictly(classifier, read_weights(weights), weights, "the classifier of phantom clips")
        return classifier.to(device).eval()
    clips, numbers, _ = phantom_clips(cache, count, frames, size, TRAINING_SEED, phantom)
    with progress_bar("classifier", total=epochs, unit="epoch") as bar:

        def report(_: int, loss: float) -> None:
            bar.set_postfix_str(f"loss={loss:.3f}", refresh=False)
            bar.update()

        classifier = train_classifier(clips, numbers.tolist(), epochs=epochs, device=device, progress=report)
    with written_beside(weights) as beside:
        save_weights(classifier.state_dict(), beside)
    return classifier


def _labels(folder: Path) -> Labels:
    videos = sorted(path.name for path in folder.glob("*.mkv"))
    return read_labels(str(folder / LABELS_NAME), folder, videos)
