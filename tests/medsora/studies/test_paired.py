"""medsora.studies.paired: intervals of paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medsora.studies.paired import MAX_SEEDS, T_95, paired_difference


def test_quantiles_are_students() -> None:
    assert pytest.approx([stats.t.ppf(0.975, df) for df in range(1, MAX_SEEDS)], rel=1e-4) == T_95


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    reference = {seed: random.normal() for seed in range(5)}
    ours = {seed: value + 0.3 + 0.1 * random.normal() for seed, value in reference.items()}
    found = paired_difference(ours, reference)
    test = stats.ttest_rel([ours[seed] for seed in range(5)], list(reference.values()))
    assert found.seeds == 5
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-4)
    assert found.reading(1) == "better"
    assert found.reading(-1) == "worse"


def test_seeds_that_only_one_side_has_and_values_that_are_not_finite_are_left_out() -> None:
    found = paired_difference({0: 1.0, 1: 3.0, 2: math.nan, 3: 9.0}, {0: 0.0, 1: 1.0, 2: 5.0})
    assert (found.mean, found.seeds) == (1.5, 2)
    assert found.reading(1) == "not distinguishable"
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    one = paired_difference({0: 1.0}, {0: 3.0})
    assert one == (-2.0, None, None, 1)
    assert one.reading(1) == "one seed: no interval"
