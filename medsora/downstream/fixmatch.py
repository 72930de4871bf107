"""FixMatch (Sohn et al., NeurIPS 2020) on clips, and what the code published with Endora does instead.

Labelled batches are trained on as usual. A weakly augmented view of each unlabelled clip is classified; where
the largest probability reaches the threshold, its class is the target of a strongly augmented view (Eqs. 3
and 4). The published code trains on the weak view itself and never uses the strong one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsora.downstream.training import Loss, Recipe, augmented, forward, predict

ALIGNMENT_BATCHES = 32  # the alignment divides by the mean probabilities of this many batches
MAX_SHIFT = 1 / 8  # weak view: share of a side
CUTOUT = 1 / 2  # strong view: share of a side
AUGMENT_OPERATIONS, AUGMENT_LEVELS = 2, 10  # RandAugment's N and M; levels from 1 to M - 1 are drawn
PUBLISHED_SCALES_PX = (256, 320)


def fixmatch_losses(
    model: nn.Module,
    labelled: Sequence[np.ndarray],
    targets: np.ndarray,
    unlabelled: Sequence[np.ndarray],
    recipe: Recipe,
    size: int,
    kept: list[float],
) -> list[tuple[int, Loss]]:
    """Return the losses (Eqs. 3 and 4) on clips uint8 (F, h, w, 3) and class numbers, for `train`.

    `kept` receives the share of pseudo-labels that reach the threshold in each step.
    """
    device = next(model.parameters()).device
    weak = _crop_and_flip if recipe.published else weak_view
    prior = torch.tensor(np.bincount(targets) / len(targets), dtype=torch.float32, device=device)
    seen: deque[Tensor] = deque(maxlen=ALIGNMENT_BATCHES)

    def supervised(step: int, rows: list[int], random: np.random.Generator) -> Tensor:
        logits = forward(model, [weak(labelled[row], size, random) for row in rows])
        return functional.cross_entropy(logits, torch.tensor(targets[rows], device=device))

    def unsupervised(step: int, rows: list[int], random: np.random.Generator) -> Tensor:
        if recipe.published and step % recipe.epoch_steps == 0:
            seen.clear()  # the published code restarts its list in each epoch
        clips = [weak(unlabelled[row], size, random) for row in rows]
        with nullcontext() if recipe.published else torch.no_grad():
            logits = forward(model, clips)
        probabilities = logits.detach().softmax(1)
        if recipe.align:
            seen.append(probabilities.mean(0))
            probabilities = probabilities / torch.stack(list(seen)).mean(0)
            probabilities = probabilities * (1 if recipe.published else prior)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        sure, pseudo = probabilities.max(1)
        if not recipe.published:
            clips = [weak(unlabelled[row], size, random) for row in rows]  # drawn again, as by the authors
            logits = forward(model, [strong_view(clip, random) for clip in clips])
        loss = functional.cross_entropy(logits, pseudo, reduction="none")
        kept.append((sure >= recipe.threshold).float().mean().item())
        return (loss * (sure >= recipe.threshold)).mean()

    return [(len(labelled), supervised), (len(unlabelled), unsupervised)]


def classify(model: nn.Module, clips: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return the class numbers (n,) of clips uint8 (F, h, w, 3), cut as `_test_view` does."""
    return predict(model, [_test_view(clip, size) for clip in clips]).argmax(1)


def weak_view(clip: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Mirror half of the clips and shift each by up to an eighth of its sides, borders reflected."""
    if random.integers(2):
        clip = clip[:, :, ::-1]
    for axis in (1, 2):
        side = clip.shape[axis]
        most = int(side * MAX_SHIFT)
        indices = np.pad(np.arange(side), most, mode="reflect")
        clip = clip.take(indices[random.integers(2 * most + 1) :][:side], axis)
    return clip


def strong_view(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change a weak view by RandAugment and cover a square of half a side, all frames alike.

    As in the authors' code each of the operations is left out in half of the cases and has its own level.
    """
    from torchvision.transforms import v2

    operations = [
        v2.RandAugment(1, int(level), num_magnitude_bins=AUGMENT_LEVELS + 1, fill=128)
        for level in random.integers(1, AUGMENT_LEVELS, AUGMENT_OPERATIONS)
        if random.integers(2)
    ]
    clip = augmented(nn.Sequential(*operations), clip, random).copy()
    height, width = clip.shape[1:3]
    half = CUTOUT * min(height, width) / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    clip[:, max(0, round(y - half)) : round(y + half), max(0, round(x - half)) : round(x + half)] = 128
    return clip


def _crop_and_flip(clip: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Scale to a random short side of 256 to 320 pixels, crop `size` at random, mirror half: as published."""
    clip = _scaled(clip, int(random.integers(PUBLISHED_SCALES_PX[0], PUBLISHED_SCALES_PX[1] + 1)))
    top, left = (int(random.integers(clip.shape[axis] - size + 1)) for axis in (1, 2))
    clip = clip[:, top : top + size, left : left + size]
    return clip[:, :, ::-1] if random.integers(2) else clip


def _test_view(clip: np.ndarray, size: int) -> np.ndarray:
    """Return the clip, or of a larger one its left (or upper) part, as the published code does."""
    return clip if clip.shape[1:3] == (size, size) else _scaled(clip, size)[:, :size, :size]


def _scaled(clip: np.ndarray, side: int) -> np.ndarray:
    frames = torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, 1).float()
    height, width = frames.shape[2:]
    scale = side / min(height, width)
    size = [max(side, int(height * scale)), max(side, int(width * scale))]
    scaled = functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
