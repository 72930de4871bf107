"""Distances of histograms, against shifts whose distance is known and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from medsora.evaluation.metrics.distributions import circular_distance, histogram_distance, sample_distance

EDGES = np.linspace(0, 10, 21)


def test_mass_moved_by_three_bins() -> None:
    one, two = np.zeros(20), np.zeros(20)
    one[2], two[5] = 1, 7
    assert histogram_distance(one, two, EDGES) == pytest.approx(1.5)


def test_close_to_the_samples_own_distance() -> None:
    random = np.random.default_rng(0)
    a, b = random.uniform(0, 6, 4000), random.uniform(2, 10, 4000)
    found = histogram_distance(np.histogram(a, EDGES)[0], np.histogram(b, EDGES)[0], EDGES)
    assert found == pytest.approx(wasserstein_distance(a, b), abs=0.02)


@pytest.mark.parametrize(("bins", "degrees"), [(9, 90.0), (18, 180.0), (27, 90.0), (35, 10.0)])
def test_the_circle_has_no_end(bins: int, degrees: float) -> None:
    one = np.zeros(36)
    one[4] = 1
    assert circular_distance(one, np.roll(one, bins)) == pytest.approx(degrees)


def test_nothing_has_no_distance() -> None:
    assert np.isnan(histogram_distance(np.zeros(20), np.ones(20), EDGES))
    assert np.isnan(circular_distance(np.ones(36), np.zeros(36)))
    ones = np.ones(2)
    assert np.isnan(sample_distance(np.array([np.nan, 1.0]), np.array([1.0, 0.0]), ones, ones))
