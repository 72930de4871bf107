"""Paired differences over seeds: what a change does where all else, the seed included, is the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import NamedTuple

MAX_SEEDS = 20
# Student's t, two-sided 95 %, by degrees of freedom from 1 on: scipy is no requirement of training.
T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930),
)


class Difference(NamedTuple):
    """The mean of differences over `seeds`, with its 95 % interval; None with a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def reading(self, sign: int) -> str:
        """Return the verdict where more (`sign` 1), less (-1) or neither (0) is better."""
        if self.low is None:
            return "one seed: no interval"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        if sign == 0:
            return "more" if self.mean > 0 else "less"
        return "better" if (self.mean > 0) == (sign > 0) else "worse"


def paired_difference(ours: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Compare values by seed; None where no seed has two finite ones. At most `MAX_SEEDS` seeds."""
    pairs = [(ours[seed], reference[seed]) for seed in ours.keys() & reference.keys()]
    differences = [one - other for one, other in pairs if math.isfinite(one) and math.isfinite(other)]
    if not differences:
        return None
    mean, count = fmean(differences), len(differences)
    if count == 1:
        return Difference(mean, None, None, 1)
    half = T_95[count - 2] * stdev(differences) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)
