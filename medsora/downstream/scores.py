"""Scores of classifications and of masks, and those of trivial baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

F1, BALANCED_ACCURACY = "F1", "balanced accuracy"
DICE, IOU = "Dice", "IoU"
RANDOM_DRAWS = 1000


def classification_scores(
    truth: np.ndarray,
    answers: np.ndarray,
    classes: int,
    positive: int | None,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Return F1 and balanced accuracy, parts of 1, of class numbers (n,) against the true ones.

    F1 is that of the class `positive`, or the mean over all classes (macro) if it is None; 0 where a class is
    neither there nor answered. Balanced accuracy is the mean recall over the classes that are there.
    `weights` (n,) count samples several times, or not at all.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, answers), weights)
    right, there, answered = table.diagonal(), table.sum(1), table.sum(0)
    f1 = 2 * right / np.maximum(there + answered, 1e-12)
    return {
        F1: float(f1.mean() if positive is None else f1[positive]),
        BALANCED_ACCURACY: float((right[there > 0] / there[there > 0]).mean()),
    }


def trivial_classifications(
    truth: np.ndarray, labels: Sequence[str], positive: int | None
) -> dict[str, dict[str, float]]:
    """Return the scores of trivial baselines: each label for all clips, and random labels."""
    count, random = len(labels), np.random.default_rng(0)
    answers = {
        f"always {label}": classification_scores(truth, np.full_like(truth, number), count, positive)
        for number, label in enumerate(labels)
    }
    draws = [
        classification_scores(truth, random.integers(count, size=len(truth)), count, positive)
        for _ in range(RANDOM_DRAWS)
    ]
    answers["random labels"] = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return answers


def mask_scores(truth: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
    """Return each picture's Dice and IoU (n,), parts of 1, of masks bool (n, H, W); 1 if both are empty."""
    both = (truth & answers).sum((1, 2))
    total = truth.sum((1, 2)) + answers.sum((1, 2))
    dice = np.where(total, 2 * both / np.maximum(total, 1), 1.0)
    return {DICE: dice, IOU: dice / (2 - dice)}


def trivial_masks(truth: np.ndarray, labelled: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the mean scores of trivial baselines: no polyp, all polyp, the mean mask.

    The mean mask is cut at the level that is best on the labelled masks themselves, bool (k, H, W); its
    scores are means over the sets of `labelled`.
    """

    def mean_scores(truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
        scores = mask_scores(truth, np.broadcast_to(answer, truth.shape))
        return {name: float(values.mean()) for name, values in scores.items()}

    def best_cut(masks: np.ndarray) -> np.ndarray:
        cuts = (masks.mean(0) >= level for level in np.unique(masks.mean(0)))
        return max(cuts, key=lambda cut: mean_scores(masks, cut)[DICE])

    of_means = [mean_scores(truth, best_cut(masks)) for masks in labelled]
    return {
        "empty mask": mean_scores(truth, np.zeros(truth.shape[1:], bool)),
        "all-polyp mask": mean_scores(truth, np.ones(truth.shape[1:], bool)),
        "mean mask": {name: float(np.mean([each[name] for each in of_means])) for name in (DICE, IOU)},
    }
