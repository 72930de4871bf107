"""The Fréchet distance of two Gaussians: what FVD, CD-FVD and FID are, each over its own features."""

from __future__ import annotations

import numpy as np


def frechet_distance(one: Moments, two: Moments, *, population: bool = False) -> float:
    """Return |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), the square as all published FID and FVD values.

    The trace of the root is the sum of the singular values of S1^½ S2^½, taken through symmetric
    eigenvalues: exact for singular covariances too (fewer samples than features), where a general matrix root
    is not. `population` divides the covariances by n instead of n - 1.

    Raises `ValueError` if either side has fewer than two samples, or their features differ in width.
    """
    if one.mean.shape != two.mean.shape:
        raise ValueError(f"features of width {one.mean.size} and {two.mean.size} cannot be compared.")
    first, second = (side.covariance(population=population) for side in (one, two))
    root = _root(first)
    product = root @ second @ root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    shift = one.mean - two.mean
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


class Moments:
    """Running weight, mean and scatter of rows of `width` numbers; memory is `width`², never more.

    A batch is added by the update of Chan, Golub and LeVeque (1983), which does not cancel where a mean is
    large beside the spread.
    """

    def __init__(self, width: int) -> None:
        self.count = 0.0
        self.mean = np.zeros(width)
        self._scatter = np.zeros((width, width))

    def add(self, rows: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Take in rows (n, width), row i as if it came `weights[i]` times (default: once)."""
        rows = np.asarray(rows, dtype=np.float64)
        weights = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
        count = float(weights.sum())
        if count == 0:
            return
        mean = weights @ rows / count
        centred = rows - mean
        scatter = (centred * weights[:, None]).T @ centred
        together = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / together)
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / together)
        self.count = together

    def covariance(self, *, population: bool = False) -> np.ndarray:
        """Return the covariance (width, width): unbiased, or `population`'s, which divides by n.

        Raises `ValueError` for fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(
                f"{self.count:.0f} samples have no covariance; a Fréchet distance needs two at least."
            )
        return self._scatter / (self.count if population else self.count - 1)
