"""How far a figure can be trusted: the same over re-sampled clips, and between halves of the real set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import Measure

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A 95 % interval, and how far re-sampling lifts the figure: about what few clips add to it."""

    low: float
    high: float
    bias: float


def replicate_weights(clips: int, replicates: int, seed: int, side: int) -> Iterator[np.ndarray]:
    """Yield, `replicates` times, how often each clip is drawn when as many are drawn with replacement."""
    for number in range(replicates):
        random = np.random.default_rng((seed, side, number))
        yield np.bincount(random.integers(clips, size=clips), minlength=clips).astype(np.float64)


def bootstrap(
    measure: Measure, real: Features, fake: Features, replicates: int, seed: int
) -> dict[str, list[float]]:
    """Return the replicates of every figure: distances by key, scores by ("real"|"generated", key)."""
    found: dict = {}
    draws = (replicate_weights(len(side.weights), replicates, seed, n) for n, side in enumerate((real, fake)))
    for real_weights, fake_weights in zip(*draws, strict=True):
        one, two = real.reweighted(real_weights), fake.reweighted(fake_weights)
        figures = dict(measure.compare(one, two))
        figures |= {("real", key): value for key, value in measure.describe(one).items()}
        figures |= {("generated", key): value for key, value in measure.describe(two).items()}
        for key, value in figures.items():
            found.setdefault(key, []).append(value)
    return found


def spread(value: float, replicates: list[float], least: float = -np.inf) -> Spread | None:
    """Return the interval around `value`, cut off at `least`, or None if no replicate is finite.

    The replicates' deviations from their own mean are put around the value itself: a Fréchet distance over
    re-sampled clips lies above it as a whole (repeated clips make covariances poorer), which says something
    of the bias and nothing of the spread.
    """
    finite = np.array([number for number in replicates if np.isfinite(number)])
    if not len(finite) or not np.isfinite(value):
        return None
    centre = float(finite.mean())
    low, high = np.quantile(finite - centre, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(max(float(value + low), least), float(value + high), centre - value)


def between_halves(measure: Measure, real: Features, seed: int) -> dict[str, float]:
    """Return the distances of two random halves of the real set: what "no difference" looks like here.

    The halves share videos, and each has half the clips: the first makes the figure lower than for two
    corpora, the second makes a Fréchet distance higher. Empty for fewer than four clips.
    """
    clips = len(real.weights)
    if clips < 4:
        return {}
    order = np.random.default_rng((seed, 2)).permutation(clips)
    first, second = np.zeros(clips), np.zeros(clips)
    first[order[: clips // 2]], second[order[clips // 2 :]] = 1, 1
    return measure.compare(real.reweighted(first), real.reweighted(second))
