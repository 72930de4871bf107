"""Mean and covariance of a stream of rows, in float64 and in one pass, however many rows there are."""

from __future__ import annotations

import numpy as np


class Moments:
    """Running weight, mean and scatter of rows of `width` numbers; memory is `width`², never more.

    Batches are merged by the update of Chan, Golub and LeVeque (1983), which does not cancel where a mean is
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
        self._merge(count, mean, (centred * weights[:, None]).T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in everything that `other` has seen."""
        self._merge(other.count, other.mean, other._scatter)

    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance (width, width). Raises `ValueError` for fewer than two rows."""
        if self.count < 2:
            raise ValueError(
                f"{self.count:.0f} samples have no covariance; a Fréchet distance needs two at least."
            )
        return self._scatter / (self.count - 1)

    def _merge(self, count: float, mean: np.ndarray, scatter: np.ndarray) -> None:
        together = self.count + count
        if together == 0:
            return
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / together)
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / together)
        self.count = together
