"""The Fréchet distance of two Gaussians: what FVD, CD-FVD and FID are, each over its own features."""

from __future__ import annotations

import numpy as np

from medsora.evaluation.metrics.moments import Moments


def frechet_distance(one: Moments, two: Moments) -> float:
    """Return |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), the square as all published FID and FVD values.

    The trace of the root is the sum of the singular values of S1^½ S2^½, taken through symmetric
    eigenvalues: exact for singular covariances too (fewer samples than features), where a general matrix root
    is not.

    Raises `ValueError` if either side has fewer than two samples, or their features differ in width.
    """
    if one.mean.shape != two.mean.shape:
        raise ValueError(f"features of width {one.mean.size} and {two.mean.size} cannot be compared.")
    first, second = one.covariance(), two.covariance()
    root = _root(first)
    product = root @ second @ root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    shift = one.mean - two.mean
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
