"""The Fréchet distance and its streamed moments, against closed forms and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
from torch_fidelity.metric_fid import fid_statistics_to_metric

from medsora.evaluation.metrics.frechet import Moments, frechet_distance


def moments_of(rows: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    moments = Moments(rows.shape[1])
    moments.add(rows, weights)
    return moments


def exactly(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments of a sample that has exactly this mean and covariance."""
    width = len(mean)
    values, vectors = np.linalg.eigh(covariance)
    rows = np.sqrt(values.clip(min=0))[:, None] * vectors.T * np.sqrt((2 * width - 1) / 2)
    return moments_of(np.concatenate([mean + rows, mean - rows]))


def random_covariance(seed: int, width: int, rank: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(width, rank))
    return factor @ factor.T


def test_equal_sets_have_no_distance() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6))
    assert frechet_distance(moments_of(rows), moments_of(rows)) == pytest.approx(0, abs=1e-9)


def test_shifted_mean_counts_squared() -> None:
    covariance = random_covariance(0, 5, 5)
    shift = np.arange(5.0)
    there = exactly(shift, covariance)
    assert frechet_distance(exactly(np.zeros(5), covariance), there) == pytest.approx(shift @ shift)


def test_commuting_covariances() -> None:
    """Diagonal covariances: the sum of squared differences of the standard deviations."""
    one, two = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    expected = np.square(np.sqrt(one) - np.sqrt(two)).sum()
    found = frechet_distance(exactly(np.zeros(3), np.diag(one)), exactly(np.zeros(3), np.diag(two)))
    assert found == pytest.approx(expected)


def test_singular_covariances() -> None:
    """Lines at an angle: tr S1 + tr S2 - 2 s1 s2 |cos|."""
    one, two = np.array([2.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])
    expected = one @ one + two @ two - 2 * abs(one @ two)
    found = frechet_distance(
        exactly(np.zeros(3), np.outer(one, one)), exactly(np.zeros(3), np.outer(two, two))
    )
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("rank", [12, 3])
def test_agrees_with_torch_fidelity(rank: int) -> None:
    one, two = random_covariance(1, 12, rank), random_covariance(2, 12, rank)
    mean = np.linspace(-1, 1, 12)
    theirs = fid_statistics_to_metric(
        {"mu": np.zeros(12), "sigma": one}, {"mu": mean, "sigma": two}, verbose=False
    )["frechet_inception_distance"]
    ours = frechet_distance(exactly(np.zeros(12), one), exactly(mean, two))
    assert ours == pytest.approx(theirs, rel=1e-6 if rank == 12 else 1e-3)


def test_one_sample_is_a_clear_error() -> None:
    two = moments_of(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 samples have no covariance"):
        frechet_distance(two, moments_of(np.zeros((1, 3))))
    with pytest.raises(ValueError, match="width 3 and 4"):
        frechet_distance(two, moments_of(np.zeros((2, 4))))


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_streaming_equals_all_at_once(batch: int) -> None:
    rows = np.random.default_rng(3).normal(1e3, 2.0, size=(100, 8)).astype(np.float32)
    streamed = Moments(8)
    for start in range(0, 100, batch):
        streamed.add(rows[start : start + batch])
    assert np.allclose(streamed.mean, rows.astype(np.float64).mean(0), rtol=1e-9)
    assert np.allclose(streamed.covariance(), np.cov(rows.astype(np.float64).T), rtol=1e-9, atol=1e-9)


def test_order_does_not_matter() -> None:
    rows = np.random.default_rng(4).normal(size=(60, 5))
    whole, shuffled = moments_of(rows), moments_of(np.random.default_rng(5).permutation(rows))
    assert np.allclose(whole.covariance(), shuffled.covariance(), rtol=1e-9, atol=1e-12)
    assert np.allclose(whole.mean, shuffled.mean, rtol=1e-9, atol=1e-12)


def test_weights_are_repetitions() -> None:
    rows = np.random.default_rng(6).normal(size=(9, 4))
    weights = np.array([0, 1, 2, 3, 1, 0, 1, 1, 5])
    weighted, repeated = moments_of(rows, weights), moments_of(rows.repeat(weights, axis=0))
    assert weighted.count == repeated.count
    assert np.allclose(weighted.covariance(), repeated.covariance(), rtol=1e-12)
