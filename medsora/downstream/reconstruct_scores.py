"""A reconstruction against the known truth, once aligned; and as Gaussian-splatting tools read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsora.data.phantom.truth import Truth
from medsora.downstream.reconstruct_clip import Geometry

POSITION, STRAIGHT = "position error, % of the path", "of a straight, steady path"
ROTATION, STILL = "rotation error, degrees", "of a constant direction"
DEPTH, FLAT = "depth error, %", "of one depth everywhere"
FOCAL = "focal length, % of the true one"
NEAR_AND_FAR = (0.1, 99.9)  # percentiles of the depths that a frame sees, as LLFF takes them


def align(points: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return scale s, rotation R (3, 3) and translation t (3,): s·R·points + t is closest to target.

    Least squares over both (n, 3), without reflections: Umeyama 1991, Eqs. 39-43. Points that are all equal
    have scale 0; on a line the rotation about it is arbitrary.
    """
    mean, target_mean = points.mean(0), target.mean(0)
    centred, target_centred = points - mean, target - target_mean
    u, singular, vt = np.linalg.svd(target_centred.T @ centred / len(points))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u * signs @ vt
    variance = (centred**2).sum(1).mean()
    scale = float(singular @ signs / variance) if variance > 1e-12 * (1 + (mean**2).sum()) else 0.0
    return scale, rotation, target_mean - scale * rotation @ mean


def position_error(positions: np.ndarray, true: np.ndarray) -> float:
    """Return the RMS distance of aligned positions (n, 3), in per cent of the true path's length."""
    scale, rotation, translation = align(positions, true)
    away = scale * positions @ rotation.T + translation - true
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    return float(100 * np.sqrt((away**2).sum(1).mean()) / length)


def rotation_error(rotations: np.ndarray, true: np.ndarray) -> float:
    """Return the mean angle in degrees between rotations (n, 3, 3), after the one turn that fits best."""
    u, _, vt = np.linalg.svd((true @ rotations.transpose(0, 2, 1)).sum(0))
    turn = u * [1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))] @ vt
    left = true.transpose(0, 2, 1) @ turn @ rotations
    return float(np.degrees(np.arccos(np.clip((np.trace(left, axis1=1, axis2=2) - 1) / 2, -1, 1))).mean())


def depth_error(depths: np.ndarray, true: np.ndarray) -> float:
    """Return the median relative error of depths (m,) in per cent, after scaling them by the median ratio."""
    scaled = depths * np.median(true / depths)
    return float(100 * np.median(np.abs(scaled / true - 1)))


def errors_against(truth: Truth, numbers: Sequence[int], geometry: Geometry) -> dict[str, float]:
    """Return the errors of a reconstruction, and those of answers that no picture was seen for.

    `numbers` are the frames of the renderer that the reconstruction's were. Empty with fewer than three
    registered frames.
    """
    frames = [numbers[k] for k in geometry.frames]
    if len(frames) < 3:
        return {}
    rotations, positions = truth.poses(frames)
    steady = np.zeros_like(positions)
    steady[:, 0] = geometry.frames
    shorter = geometry.size.min()
    errors = {
        POSITION: position_error(geometry.centres, positions),
        STRAIGHT: position_error(steady, positions),
        ROTATION: rotation_error(geometry.rotations, rotations),
        STILL: rotation_error(np.broadcast_to(np.eye(3), rotations.shape), rotations),
        FOCAL: float(100 * geometry.camera[0] / shorter * min(truth.lens.height, truth.lens.width))
        / truth.lens.focal,
    }
    pixels = geometry.pixels * (min(truth.lens.height, truth.lens.width) / shorter) - 0.5
    true = np.full(len(pixels), np.nan)
    for row, frame in enumerate(frames):
        own = geometry.seen_in == row
        true[own] = truth.depth(frame, pixels[own])
    known = np.isfinite(true) & (geometry.depths > 0)
    if known.any():
        errors[DEPTH] = depth_error(geometry.depths[known], true[known])
        errors[FLAT] = depth_error(np.ones(known.sum()), true[known])
    return errors


def poses_bounds(geometry: Geometry) -> np.ndarray:
    """Return what LLFF's `poses_bounds.npy` holds, (n, 17), a row per registered frame.

    A row is a 3x5 matrix, row by row, then the nearest and farthest depth. The matrix' columns are the
    camera's down, right and backwards in the world, its position, and (height, width, focal length). The
    depths are the 0.1 and 99.9 percentiles of the points that the frame sees.
    """
    right, down, forward = np.moveaxis(geometry.rotations, 2, 0)
    lens = np.broadcast_to([*geometry.size, geometry.camera[0]], right.shape)
    matrices = np.stack([down, right, -forward, geometry.centres, lens], axis=2)
    seen = [geometry.depths[geometry.seen_in == row] for row in range(len(matrices))]
    bounds = [np.percentile(own if len(own) else geometry.depths, NEAR_AND_FAR) for own in seen]
    return np.concatenate([matrices.reshape(-1, 15), bounds], axis=1)
