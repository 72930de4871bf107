"""Scores of classifications, and what constant and random answers reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

F1, BALANCED_ACCURACY = "F1", "balanced accuracy"
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
    """Return the scores of answers that no clip was seen for: each label always, and random labels."""
    count, random = len(labels), np.random.default_rng(0)
    found = {
        f"always {label}": classification_scores(truth, np.full_like(truth, number), count, positive)
        for number, label in enumerate(labels)
    }
    draws = [
        classification_scores(truth, random.integers(count, size=len(truth)), count, positive)
        for _ in range(RANDOM_DRAWS)
    ]
    found["random labels"] = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return found
