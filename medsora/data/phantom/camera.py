"""The endoscope's way through the tube: centre line, camera poses and the projection.

World: z along the tube, x and y across it. Camera: x right, y down, z forward, as pictures count.
Every quantity is a closed formula of the frame index, so frame k does not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOOK_AHEAD = 2.2


class CentreLine:
    """The tube's curved centre, x(z) and y(z), two sine waves each."""

    def __init__(self, rng: np.random.Generator) -> None:
        wavelength = rng.uniform(7, 16, (2, 2))
        slope = rng.uniform(0.1, 0.38, (2, 2))
        self._frequency = (2 * np.pi / wavelength).astype(np.float32)
        self._amplitude = (slope / self._frequency).astype(np.float32)
        self._phase = rng.uniform(0, 2 * np.pi, (2, 2)).astype(np.float32)

    def at(self, z: np.ndarray) -> list[np.ndarray]:
        """x and y of the centre at `z`."""
        return [
            a[0] * np.sin(w[0] * z + p[0]) + a[1] * np.sin(w[1] * z + p[1])
            for a, w, p in zip(self._amplitude, self._frequency, self._phase, strict=True)
        ]

    def slope(self, z: np.ndarray) -> list[np.ndarray]:
        """dx/dz and dy/dz of the centre at `z`."""
        return [
            a[0] * w[0] * np.cos(w[0] * z + p[0]) + a[1] * w[1] * np.cos(w[1] * z + p[1])
            for a, w, p in zip(self._amplitude, self._frequency, self._phase, strict=True)
        ]


@dataclass(frozen=True)
class Pose:
    """Camera in the world: `world = rotation @ camera + position`."""

    rotation: np.ndarray  # (3, 3)
    position: np.ndarray  # (3,)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Return points (…, 3) of the camera in the world."""
        return points @ self.rotation.T + self.position

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Return points (…, 3) of the world as the camera sees them."""
        return (points - self.position) @ self.rotation


class Path:
    """Advance or withdrawal along the tube with the hand's unsteadiness: sway, pan and roll."""

    def __init__(self, rng: np.random.Generator) -> None:
        withdraws = rng.uniform() < 0.35
        self.speed = rng.uniform(0.04, 0.105) * (-1 if withdraws else 1)  # units per frame
        self._surge = Sway(rng, 1, 0.35 * abs(self.speed), (9, 20), velocity=True)
        self._offset = Sway(rng, 2, 0.09, (10, 26))
        self._pan = Sway(rng, 2, 0.2, (14, 40))
        self._tremor = Sway(rng, 2, 0.012, (3.5, 7))
        self._roll = Sway(rng, 1, 0.12, (16, 40))
        self._upright = rng.uniform(-np.pi, np.pi)

    def pose(self, line: CentreLine, frame: int) -> Pose:
        """Camera pose in frame `frame`; frame 0 is near z = 0."""
        z = self.speed * frame + self._surge(frame)[0]
        x, y = line.at(z)
        dx, dy = self._offset(frame)
        position = np.array([x + dx, y + dy, z])
        ahead = z + LOOK_AHEAD
        forward = unit(np.array([*line.at(ahead), ahead]) - position)
        roll = self._upright + self._roll(frame)[0]
        down = np.array([-np.sin(roll), np.cos(roll), 0.0])
        right = unit(np.cross(down, forward))
        down = np.cross(forward, right)
        yaw, pitch = self._pan(frame) + self._tremor(frame)
        forward = unit(forward + np.tan(yaw) * right + np.tan(pitch) * down)
        right = unit(np.cross(down, forward))
        rotation = np.stack([right, np.cross(forward, right), forward], axis=1)
        return Pose(rotation, position)


class Lens:
    """Pinhole projection onto a picture of (height, width) pixels; pixel (0, 0) has its centre at (0, 0).

    `focal` is in units of the picture's shorter side.
    """

    def __init__(self, height: int, width: int, focal: float) -> None:
        self.height, self.width = height, width
        self.focal = focal * min(height, width)
        self._centre = np.array([(width - 1) / 2, (height - 1) / 2])

    def rays(self, supersampling: int = 1) -> np.ndarray:
        """Unit directions `(H·k·W·k, 3)` through a regular k x k grid inside every pixel, row by row."""
        k = supersampling
        inside = (np.arange(k) + 0.5) / k - 0.5
        x = (np.arange(self.width)[:, None] + inside).ravel() - self._centre[0]
        y = (np.arange(self.height)[:, None] + inside).ravel() - self._centre[1]
        x, y = np.meshgrid(x / self.focal, y / self.focal)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
        return unit(rays).astype(np.float32)

    def rays_through(self, pixels: np.ndarray) -> np.ndarray:
        """Unit directions `(n, 3)` through pixel positions `(n, 2)`, x before y."""
        across = (pixels - self._centre) / self.focal
        return unit(np.column_stack([across, np.ones(len(across))])).astype(np.float32)

    def pixels(self) -> np.ndarray:
        """The pixels' own positions `(H·W, 2)`, x before y, row by row."""
        y, x = np.mgrid[: self.height, : self.width]
        return np.stack([x.ravel(), y.ravel()], axis=1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera-space points `(n, 3)` to pixels `(n, 2)`, x before y."""
        depth = np.maximum(points[:, 2:], 1e-3)
        return points[:, :2] / depth * self.focal + self._centre

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """Return which pixel positions have all their bilinear neighbours inside the picture."""
        x, y = pixels.T
        return (x >= 0) & (x <= self.width - 1) & (y >= 0) & (y <= self.height - 1)


class Sway:
    """A few sine waves per axis; zero mean, `amplitude` about its peak.

    With `velocity`, `amplitude` bounds the change per frame instead.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        axes: int,
        amplitude: float,
        periods: tuple[float, float],
        velocity: bool = False,
    ) -> None:
        self._frequency = 2 * np.pi / rng.uniform(*periods, (axes, 2))
        self._phase = rng.uniform(0, 2 * np.pi, (axes, 2))
        self._amplitude = amplitude * rng.uniform(0.4, 1, (axes, 1)) * np.array([0.65, 0.35])
        if velocity:
            self._amplitude = self._amplitude / self._frequency

    def __call__(self, frame: int) -> np.ndarray:
        """Return the displacement at a frame."""
        return (self._amplitude * np.sin(self._frequency * frame + self._phase)).sum(axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (…, 3) with length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
