"""Uncertainty of a metric: its values over re-sampled clips, and between halves of the real set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import Measure

LEVEL = 0.95
MIN_REPLICATES = 40  # below, a 95 % quantile is one of the two largest


@dataclass(frozen=True)
class Spread:
    """A 95 % interval, and how far re-sampling raises the metric: about what few clips add to it."""

    low: float
    high: float
    bias: float


def replicate_weights(clips: int, replicates: int, seed: int, side: int) -> Iterator[np.ndarray]:
    """Yield, `replicates` times, how often each clip is drawn when as many are drawn with replacement."""
    for number in range(replicates):
        random = np.random.default_rng((seed, side, number))
        yield np.bincount(random.integers(clips, size=clips), minlength=clips).astype(np.float64)


def bootstrap(
    measure: Measure,
    real: Features,
    fakes: Sequence[Features],
    replicates: int,
    seed: int,
    videos: Sequence[np.ndarray | None] | None = None,
) -> list[dict]:
    """Return each generated set's replicates: distances by key, scores by ("real"|"generated", key).

    Replicate k of every set is compared with the same draw of real clips, so differences of replicates are
    paired. `videos` numbers the video of each clip, of the real set and of each generated one: then whole
    videos are drawn instead of clips, whose resemblance they keep; None draws clips.
    """
    sets = [real, *fakes]
    groups = [
        np.arange(len(features.weights)) if of_clips is None else of_clips
        for features, of_clips in zip(sets, videos or [None] * len(sets), strict=True)
    ]
    draws = (replicate_weights(int(of.max()) + 1, replicates, seed, side) for side, of in enumerate(groups))
    by_set: list[dict] = [{} for _ in fakes]
    for drawn in zip(*draws, strict=True):
        one, *others = (
            features.reweighted(weights[of])
            for features, weights, of in zip(sets, drawn, groups, strict=True)
        )
        of_real = {("real", key): value for key, value in measure.describe(one).items()}
        for two, replicate in zip(others, by_set, strict=True):
            metrics = {**measure.compare(one, two), **of_real}
            metrics |= {("generated", key): value for key, value in measure.describe(two).items()}
            for key, value in metrics.items():
                replicate.setdefault(key, []).append(value)
    return by_set


def spread(value: float, replicates: list[float], least: float = -np.inf) -> Spread | None:
    """Return the interval around `value`, cut off at `least`, or None for fewer than two finite replicates.

    The replicates' deviations from their own mean are put around the value itself: a Fréchet distance over
    re-sampled clips lies above it as a whole (repeated clips make covariances poorer), which is informative
    of the bias and nothing of the spread.
    """
    finite = np.array([number for number in replicates if np.isfinite(number)])
    if len(finite) < 2 or not np.isfinite(value):
        return None
    centre = float(finite.mean())
    low, high = np.quantile(finite - centre, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(max(float(value + low), least), float(value + high), centre - value)


@dataclass(frozen=True)
class Difference:
    """A metric of one set minus that of another, with a simultaneous 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def differences(
    values: Sequence[float], replicates: Sequence[Sequence[float]]
) -> dict[tuple[int, int], Difference]:
    """Return, for every pair i < j of sets, value i - value j with an interval for all pairs at once.

    `replicates` (sets, n) are paired (`bootstrap`). The interval is d ± c·s: s is the standard deviation of
    the pair's n differences, c the 95 % quantile over replicates of the largest |deviation| / s of any pair
    (single-step max-T; Romano and Wolf 2005): with 95 % confidence all of the metric's intervals hold
    together. Each is widened so that it would hold around d without the bias that re-sampling shows, too.
    Pairs of which a value is undefined are left out.
    """
    draws = np.array([np.asarray(row, float) for row in replicates])
    defined = [
        np.isfinite(value) and np.isfinite(row).any() for value, row in zip(values, draws, strict=True)
    ]
    pairs = [pair for pair in combinations(range(len(values)), 2) if all(defined[i] for i in pair)]
    if not pairs:
        return {}
    gaps = np.stack([draws[i] - draws[j] for i, j in pairs])
    gaps = gaps[:, np.isfinite(gaps).all(0)]
    if gaps.shape[1] < 2:
        return {}
    centres, spreads = gaps.mean(1), gaps.std(1, ddof=1)
    deviations = np.abs(gaps - centres[:, None]) / np.where(spreads > 0, spreads, 1)[:, None]
    critical = np.quantile(deviations.max(0), LEVEL)
    intervals = {}
    for (i, j), centre, half in zip(pairs, centres, critical * spreads, strict=True):
        value = float(values[i] - values[j])
        unbiased = 2 * value - float(centre)
        low, high = sorted((value, unbiased))
        intervals[i, j] = Difference(value, float(low - half), float(high + half))
    return intervals


def rank_ranges(
    clear: Mapping[tuple[int, int], float], defined: Sequence[bool]
) -> list[tuple[int, int] | None]:
    """Return each set's best and worst possible rank, 1 being the best; None for an undefined value.

    `clear` holds the pairs whose difference is clear and how much worse than the second the first is. The
    ranges hold together at the level of the intervals behind them (Mogstad et al. 2024).
    """
    better, worse = [0] * len(defined), [0] * len(defined)
    for (i, j), lag in clear.items():
        loser, winner = (i, j) if lag > 0 else (j, i)
        better[loser] += 1
        worse[winner] += 1
    ranked = sum(defined)
    return [
        (1 + above, ranked - below) if known else None
        for above, below, known in zip(better, worse, defined, strict=True)
    ]


def between_halves(measure: Measure, real: Features, seed: int) -> dict[str, float]:
    """Return the distances of two random halves of the real set, the values without any difference.

    The halves share videos, and each has half the clips: the first makes the metric lower than for two
    corpora, the second makes a Fréchet distance higher. Empty for fewer than four clips.
    """
    clips = len(real.weights)
    if clips < 4:
        return {}
    order = np.random.default_rng((seed, 2)).permutation(clips)
    first, second = np.zeros(clips), np.zeros(clips)
    first[order[: clips // 2]], second[order[clips // 2 :]] = 1, 1
    return measure.compare(real.reweighted(first), real.reweighted(second))
