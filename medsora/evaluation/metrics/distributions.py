"""Distances between distributions that are given as histograms or as one weighted number per clip."""

from __future__ import annotations

import numpy as np
from scipy.stats import wasserstein_distance


def histogram_distance(one: np.ndarray, two: np.ndarray, edges: np.ndarray) -> float:
    """Return the 1-Wasserstein distance of two histograms (bins,), in the unit of `edges` (bins + 1,).

    How far a unit of mass must be moved on average; within a bin mass is spread evenly. NaN for empty ones.
    """
    if one.sum() <= 0 or two.sum() <= 0:
        return float("nan")
    gap = np.concatenate([[0.0], np.cumsum(one / one.sum() - two / two.sum())])
    left, right = np.abs(gap[:-1]), np.abs(gap[1:])
    same_sign = gap[:-1] * gap[1:] >= 0
    crossing = (left**2 + right**2) / np.where(left + right > 0, left + right, 1)
    return float((np.where(same_sign, left + right, crossing) / 2 * np.diff(edges)).sum())


def circular_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Return the 1-Wasserstein distance in degrees of two histograms (bins,) over the full circle.

    The best place to cut the circle open is the median of the cumulative difference (Werman et al. 1986).
    NaN for empty ones.
    """
    if one.sum() <= 0 or two.sum() <= 0:
        return float("nan")
    gap = np.cumsum(one / one.sum() - two / two.sum())
    return float(np.abs(gap - np.median(gap)).mean() * 360)


def sample_distance(
    one: np.ndarray, one_weights: np.ndarray, two: np.ndarray, two_weights: np.ndarray
) -> float:
    """Return the 1-Wasserstein distance of two weighted samples; NaN if a sample has no finite value."""
    first, second = np.isfinite(one) & (one_weights > 0), np.isfinite(two) & (two_weights > 0)
    if not first.any() or not second.any():
        return float("nan")
    return float(wasserstein_distance(one[first], two[second], one_weights[first], two_weights[second]))
