"""FixMatch on pixels, as Yang et al. (UniMatch, CVPR 2023, section 3.1) take it for segmentation.

A weakly changed view of each unlabelled picture is segmented; where a pixel's probability reaches the
threshold, its answer is the target of a strongly changed view: colours, blur and CutMix (French et al.,
BMVC 2020). The loss is the mean over all pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsora.downstream.training import Loss, Recipe, augmented, forward

MAX_TURN_DEG, MAX_ZOOM, MAX_SHIFT = 180.0, 1.25, 1 / 8  # weak view; the shift is a share of a side
# Strong view, UniMatch's values: brightness, contrast, saturation, hue; CutMix's area and aspect.
JITTER, JITTER_RATE, GREY_RATE, BLUR_RATE, BLUR_PX = (0.5, 0.5, 0.5, 0.25), 0.8, 0.2, 0.5, (0.1, 2.0)
CUTMIX_RATE, CUTMIX_AREA, CUTMIX_ASPECT = 0.5, (0.02, 0.4), 0.3


def segmentation_losses(
    model: nn.Module,
    labelled: Sequence[np.ndarray],
    masks: np.ndarray,
    unlabelled: Sequence[np.ndarray],
    recipe: Recipe,
    kept: list[float],
) -> list[tuple[int, Loss]]:
    """Return the losses on pictures uint8 (H, W, 3) and masks bool (n, H, W), for `train`.

    Labelled pictures: binary cross-entropy plus 1 - the batch's Dice. `kept` receives the share of pixels
    that reach the threshold in each step.
    """

    def supervised(step: int, rows: list[int], random: np.random.Generator) -> Tensor:
        views = [weak_view(labelled[row], masks[row], random) for row in rows]
        logits = forward(model, [picture for picture, _ in views])
        target = torch.from_numpy(np.stack([mask for _, mask in views])).to(logits)
        probability = logits.sigmoid()
        dice = (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        return functional.binary_cross_entropy_with_logits(logits, target) + 1 - dice

    def unsupervised(step: int, rows: list[int], random: np.random.Generator) -> Tensor:
        nothing = np.zeros(unlabelled[0].shape[:2], bool)
        weak = [weak_view(unlabelled[row], nothing, random)[0] for row in rows]
        with torch.no_grad():
            probability = forward(model, weak).sigmoid()
        strong = np.stack([strong_view(picture, random) for picture in weak])
        pasted = cutmix_boxes(*strong.shape[:3], random)
        logits = forward(model, np.where(pasted[..., None], np.roll(strong, 1, 0), strong))
        from_other = torch.from_numpy(pasted).to(probability.device)
        probability = torch.where(from_other, probability.roll(1, 0), probability)
        target = (probability > 0.5).to(logits)
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        sure = (torch.maximum(probability, 1 - probability) >= recipe.threshold).float()
        kept.append(sure.mean().item())
        return (loss * sure).mean()

    return [(len(labelled), supervised), (len(unlabelled), unsupervised)]


def weak_view(
    picture: np.ndarray, mask: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror half of the pictures, turn, zoom and shift each; borders reflected, the mask alike."""
    height, width = mask.shape
    zoom = MAX_ZOOM ** random.uniform(-1, 1)
    centre, angle = ((width - 1) / 2, (height - 1) / 2), random.uniform(-MAX_TURN_DEG, MAX_TURN_DEG)
    turn = cv2.getRotationMatrix2D(centre, angle, zoom)
    turn[:, 2] += random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * (width, height)
    if random.integers(2):
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    four = np.dstack([picture, mask * np.uint8(255)])
    four = cv2.warpAffine(four, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return four[..., :3], four[..., 3] > 127


def strong_view(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change the colours of a weak view, or take them away, and blur it."""
    from torchvision.transforms import v2

    colours = v2.RandomApply([v2.ColorJitter(*JITTER)], JITTER_RATE)
    picture = augmented(v2.Compose([colours, v2.RandomGrayscale(GREY_RATE)]), picture, random)
    if random.uniform() < BLUR_RATE:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(*BLUR_PX))
    return picture


def cutmix_boxes(count: int, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Return where another picture is pasted, bool (count, height, width): one box in half of them."""
    boxes = np.zeros((count, height, width), bool)
    for box in boxes:
        if random.uniform() < CUTMIX_RATE:
            area = random.uniform(*CUTMIX_AREA) * height * width
            aspect = CUTMIX_ASPECT ** random.uniform(-1, 1)
            tall, wide = min(height, round((area * aspect) ** 0.5)), min(width, round((area / aspect) ** 0.5))
            top, left = random.integers(height - tall + 1), random.integers(width - wide + 1)
            box[top : top + tall, left : left + wide] = True
    return boxes
