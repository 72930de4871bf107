"""Measures: a feature extractor, metrics that compare two sets, and metrics that describe one set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.metrics.frechet import Moments, frechet_distance


@dataclass(frozen=True)
class Metric:
    """One number of a report. `better` is "lower", "higher", or "as real" for a metric of one set alone."""

    key: str
    title: str
    better: str
    unit: str = ""


class Measure:
    """`compare` returns a number for every key in `distances`, `describe` for every key in `scores`."""

    distances: tuple[Metric, ...] = ()
    scores: tuple[Metric, ...] = ()
    published = False  # as the protocol stylegan-v: covariances divided by n, consecutive Inception splits

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor

    def compare(self, real: Features, fake: Features) -> dict[str, float]:
        """Return the distances between two sets, by the keys of `distances`."""
        return {}

    def describe(self, features: Features) -> dict[str, float]:
        """Return metrics of one set, by the keys of `scores`."""
        return {}


class FrechetMeasure(Measure):
    """A Fréchet distance over an extractor's features, or over the columns `columns` of them."""

    def __init__(self, key: str, title: str, extractor: Extractor, columns: slice = slice(None)) -> None:
        self.extractor, self.columns = extractor, columns
        self.distances = (Metric(key, title, "lower"),)

    def compare(self, real: Features, fake: Features) -> dict[str, float]:
        """Return the distance. Raises `ValueError` for fewer than two samples on a side."""
        sides = self._moments(real), self._moments(fake)
        return {self.distances[0].key: frechet_distance(*sides, population=self.published)}

    def _moments(self, features: Features) -> Moments:
        moments = Moments(len(range(self.extractor.width)[self.columns]))
        for values, weights in features.batches():
            rows = values[..., self.columns]
            moments.add(rows.reshape(-1, rows.shape[-1]), np.repeat(weights, rows.shape[1]))
        return moments


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean of the finite values (n,); NaN if there is none."""
    finite = np.isfinite(values) & (weights > 0)
    return float(np.average(values[finite], weights=weights[finite])) if finite.any() else float("nan")
