"""The instrument: biopsy forceps in the camera's own space, three rigid capsules (shaft and two jaws).

The forceps leave the endoscope beside the lens, so they enter the picture from its edge; the hand pushes and
pulls them, swings them and opens the jaws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsora.data.phantom.camera import Sway, unit

_SHAFT_LENGTH, _JAW_LENGTH = 3.0, 0.2


@dataclass(frozen=True)
class Capsule:
    """A rigid capsule: `camera = frame @ local + origin`; its axis runs from local 0 to (0, 0, length)."""

    frame: np.ndarray  # (3, 3), the columns are the local axes
    origin: np.ndarray  # (3,)
    length: float
    radius: float

    def hit(self, rays: np.ndarray) -> np.ndarray:
        """Distance `(n,)` along unit rays from the camera's centre; infinity where they miss."""
        axis = (self.frame[:, 2] * self.length).astype(np.float32)
        to_camera = -self.origin.astype(np.float32)
        along_ray, along_start = rays @ axis, float(to_camera @ axis)
        square = self.length**2
        a = np.maximum(square - along_ray**2, 1e-6)  # 0 for rays along the axis
        b = square * (rays @ to_camera) - along_start * along_ray
        c = square * float(to_camera @ to_camera) - along_start**2 - self.radius**2 * square
        root = b**2 - a * c
        body = (-b - np.sqrt(np.maximum(root, 0))) / a
        reach = along_start + body * along_ray
        distance = np.where((root > 0) & (reach > 0) & (reach < square) & (body > 0), body, np.inf)
        for end in (self.origin, self.origin + self.frame[:, 2] * self.length):
            end = end.astype(np.float32)
            along = rays @ end
            root = along**2 - (float(end @ end) - self.radius**2)
            cap = along - np.sqrt(np.maximum(root, 0))
            distance = np.where((root > 0) & (cap > 0), np.minimum(distance, cap), distance)
        return distance

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return points (…, 3) of the world in the instrument's axes."""
        return (points - self.origin) @ self.frame

    def place(self, local: np.ndarray) -> np.ndarray:
        """Return points (…, 3) of the instrument in the world."""
        return local @ self.frame.T + self.origin


class Forceps:
    """Shape and movement of the forceps of one clip."""

    def __init__(self, rng: np.random.Generator) -> None:
        entry = rng.uniform(0, 2 * np.pi)
        self._sideways = np.array([-np.sin(entry), np.cos(entry), 0.0])
        self._base = np.array([np.cos(entry), np.sin(entry), 0.0]) * 0.34 + [0, 0, 0.12]
        aim = np.array([np.cos(entry), np.sin(entry), 0.0]) * rng.uniform(-0.05, 0.15)
        aim = aim + self._sideways * rng.uniform(-0.15, 0.15) + [0, 0, rng.uniform(0.75, 0.95)]
        self._aim = aim
        self._push = Sway(rng, 1, 0.12, (9, 20))
        self._swing = Sway(rng, 2, 0.1, (10, 24))
        self._opening = Sway(rng, 1, 0.25, (10, 24))
        self._radius = rng.uniform(0.045, 0.06)
        self.tint = rng.choice([[0.62, 0.64, 0.68], [0.55, 0.62, 0.72], [0.68, 0.66, 0.62]])

    def capsules(self, frame: int) -> list[Capsule]:
        """Shaft and jaws in frame `frame`; local z points from the tip backwards on the shaft."""
        swing = self._swing(frame)
        tip = self._aim + swing[0] * self._sideways + swing[1] * np.array([0, 0, 0.5])
        forward = unit(tip - self._base)
        tip = tip + forward * self._push(frame)[0]
        across = unit(np.cross(forward, self._sideways))
        hinge = np.cross(across, forward)
        opening = 0.45 + self._opening(frame)[0]
        parts = [Capsule(_axes(-forward, across), tip, _SHAFT_LENGTH, self._radius)]
        for side in (-1, 1):
            along = np.cos(opening) * forward + side * np.sin(opening) * hinge
            parts.append(Capsule(_axes(along, across), tip, _JAW_LENGTH, self._radius * 0.72))
        return parts

    def shade(self, part: int, local: np.ndarray) -> np.ndarray:
        """Albedo `(n, 3)`: a coiled sheath with a dark ring before the bright jaws."""
        z = local[:, 2:]
        tint = np.asarray(self.tint, np.float32)
        if part > 0:
            return np.broadcast_to(tint * 1.15, (len(local), 3))
        coil = 0.82 + 0.18 * np.cos(z * (2 * np.pi / 0.11))
        ring = 1 - 0.55 * np.exp(-(((z - 0.1) / 0.035) ** 2))
        return tint * coil * ring


def _axes(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A right-handed frame whose third axis is `along`; `across` is perpendicular to it."""
    return np.stack([across, np.cross(along, across), along], axis=1)
