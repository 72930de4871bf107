"""Ray casting of the phantom: the folded tube, the forceps, and the light that they reflect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsora.data.phantom.camera import CentreLine, Path, Pose
from medsora.data.phantom.forceps import Forceps
from medsora.data.phantom.looks import DEFAULT_LOOK, Look
from medsora.data.phantom.wall import Wall

MAX_DEPTH = 10.0  # depth from which everything is as dark as the lumen
_CAUTION = 0.85
_NEAREST = 0.05
_WALL = -1  # number of the wall among the capsules


@dataclass(frozen=True)
class Hits:
    """End points of `n` rays."""

    distance: np.ndarray  # (n,)
    part: np.ndarray  # (n,) -1 for the wall, else the number of the forceps' capsule
    points: np.ndarray  # (n, 3) in camera space

    def __getitem__(self, which: slice | np.ndarray) -> Hits:
        return Hits(self.distance[which], self.part[which], self.points[which])


class Scene:
    """One clip's world, drawn from generators that do not influence each other."""

    def __init__(
        self, seed: int, *, polyp: bool, instrument: bool, polyp_size: float = 1.0, look: Look = DEFAULT_LOOK
    ) -> None:
        streams = np.random.SeedSequence(seed).spawn(6)
        line, path, wall, place, forceps, light = (np.random.default_rng(s) for s in streams)
        self.line = CentreLine(line)
        self.path = Path(path)
        gap = place.uniform(0.1, 0.5)
        polyp_at = 0.9 + 9 * max(self.path.speed, 0) + gap if polyp else None
        self.wall = Wall(wall, polyp_at, polyp_size)
        self.forceps = Forceps(forceps) if instrument else None
        self.light = light.uniform(-0.09, 0.09, 3) * [1, 1, 0]
        self.exposure = light.uniform(2.1, 2.7)
        self.reach = light.uniform(1.05, 1.4)
        self.shine = light.uniform(0.5, 0.9)
        self.look = look
        self.vignette = light.choice(list(look.masks), p=list(look.masks.values()))

    def trace(self, pose: Pose, rays: np.ndarray, frame: int, start: np.ndarray | None = None) -> Hits:
        """Follow unit rays `(n, 3)` (camera space) to the first surface.

        `start`, `(n,)`, are distances that are known to lie before the wall.
        """
        distance = self._trace_wall(pose, rays, start)
        part = np.full(len(rays), _WALL, np.int8)
        if self.forceps is not None:
            for number, capsule in enumerate(self.forceps.capsules(frame)):
                hit = capsule.hit(rays)
                nearer = hit < distance
                distance = np.where(nearer, hit, distance)
                part[nearer] = number
        return Hits(distance, part, rays * distance[:, None])

    def _trace_wall(self, pose: Pose, rays: np.ndarray, start: np.ndarray | None) -> np.ndarray:
        """Distances to the wall: cautious strides inside the tube, then regula falsi in the last stride.

        The stride is a part of the gap to the wall, divided by how fast the ray leaves the axis at most;
        the part is small enough for the folds' steepness.
        """
        origin = pose.position.astype(np.float32)
        directions = rays @ pose.rotation.astype(np.float32).T
        outwards = np.hypot(directions[:, 0], directions[:, 1]) + 0.9 * np.abs(directions[:, 2])
        n = len(rays)
        inside, outside = np.full(n, _NEAREST, np.float32), np.full(n, MAX_DEPTH, np.float32)
        gap_inside, gap_outside = np.ones(n, np.float32), -np.ones(n, np.float32)
        active, d, speed = np.arange(n), directions, outwards
        t = inside.copy() if start is None else np.clip(start, _NEAREST, MAX_DEPTH)
        while len(active):
            gap = self._gap(origin + t[:, None] * d)
            going = (gap > 0) & (t < MAX_DEPTH)
            if not going.all():
                landed = np.flatnonzero(gap <= 0)
                outside[active[landed]], gap_outside[active[landed]] = t[landed], gap[landed]
                going = np.flatnonzero(going)
                active, d = active.take(going), d.take(going, axis=0)
                t, gap, speed = t.take(going), gap.take(going), speed.take(going)
            inside[active], gap_inside[active] = t, gap
            t = t + np.maximum(_CAUTION * gap / speed, 0.02 + 0.015 * t)
        for _ in range(3):
            share = np.clip(gap_inside / (gap_inside - gap_outside), 0.1, 0.9)
            middle = inside + share * (outside - inside)
            gap = self._gap(origin + middle[:, None] * directions)
            hit = gap <= 0
            outside, gap_outside = np.where(hit, middle, outside), np.where(hit, gap, gap_outside)
            inside, gap_inside = np.where(hit, inside, middle), np.where(hit, gap_inside, gap)
        return inside + gap_inside / (gap_inside - gap_outside) * (outside - inside)

    def _gap(self, points: np.ndarray) -> np.ndarray:
        """Distance of `(n, 3)` world points from the wall, away from the axis; negative behind it."""
        x, y = self.line.at(points[:, 2])
        x, y = points[:, 0] - x, points[:, 1] - y
        return self.wall.radius(points[:, 2], np.arctan2(y, x)) - np.sqrt(x * x + y * y)

    def radiance(self, pose: Pose, rays: np.ndarray, hits: Hits, frame: int) -> np.ndarray:
        """Display colour `(n, 3)` in [0, 1] of what the rays hit."""
        albedo, normal, gloss, sharpness = self._surface(pose, hits, frame)
        to_light = self.light.astype(np.float32) - hits.points
        light_distance = np.sqrt(_dot(to_light, to_light))
        to_light = to_light / light_distance[:, None]
        facing = np.clip(_dot(normal, to_light), 0, None)
        halfway = to_light - rays
        halfway /= np.sqrt(_dot(halfway, halfway))[:, None]
        glint = np.clip(_dot(normal, halfway), 0, 1) ** sharpness
        irradiance = 1 / (1 + (light_distance / self.reach) ** 2) ** 1.35
        wall = hits.part == _WALL
        irradiance = np.where(wall, irradiance, 0.45 * irradiance / (0.3 + irradiance))
        diffuse = albedo * ((0.25 + 0.75 * facing) * irradiance * self.exposure)[:, None]
        # Light that is scattered about in a deep tube of mucosa comes back redder.
        depth = np.where(wall, light_distance, 0)[:, None]
        diffuse *= np.exp(-depth * np.array([0.0, 0.17, 0.18], np.float32))
        highlight = gloss * glint * self.shine * np.minimum(irradiance * 3, 1)
        display = (1 - np.exp(-1.25 * diffuse)) ** (1 / 1.25)
        return self.look.show(display + (1 - display) * np.clip(highlight, 0, 1)[:, None])

    def _surface(self, pose: Pose, hits: Hits, frame: int) -> tuple[np.ndarray, ...]:
        """Albedo (n, 3), unit normal (n, 3) towards the viewer's side, gloss (n,) and sharpness (n,)."""
        world = pose.to_world(hits.points).astype(np.float32)
        z = world[:, 2]
        x, y = self.line.at(z)
        x, y = world[:, 0] - x, world[:, 1] - y
        r = np.sqrt(x * x + y * y) + 1e-6
        angle = np.arctan2(y, x)
        along, around = self.wall.slopes(z, angle)
        across_x, across_y = x / r + around / r * y / r, y / r - around / r * x / r
        dx, dy = self.line.slope(z)
        normal = -np.stack([across_x, across_y, -dx * across_x - dy * across_y - along], axis=1)
        normal /= np.sqrt(_dot(normal, normal))[:, None]
        normal = normal @ pose.rotation.astype(np.float32)
        albedo, polyp = self.wall.colour(z, angle)
        gloss = 1.0 + 0.3 * polyp
        sharpness = np.full(len(z), 130, np.float32)
        if self.forceps is not None:
            for number, capsule in enumerate(self.forceps.capsules(frame)):
                on = np.flatnonzero(hits.part == number)
                local = capsule.local(hits.points[on])
                axial = np.clip(local[:, 2:], 0, capsule.length) * np.array([0, 0, 1])
                outward = (local - axial) / capsule.radius
                normal[on] = outward @ capsule.frame.T
                albedo[on] = self.forceps.shade(number, local)
                gloss[on], sharpness[on] = 0.9, 25
        return albedo, normal, gloss, sharpness

    def on_polyp(self, pose: Pose, hits: Hits) -> np.ndarray:
        """Return which rays hit the polyp, bool `(n,)`; its edge is where half its colour is reached."""
        world = pose.to_world(hits.points).astype(np.float32)
        x, y = self.line.at(world[:, 2])
        _, polyp = self.wall.colour(world[:, 2], np.arctan2(world[:, 1] - y, world[:, 0] - x))
        return (hits.part == _WALL) & (hits.distance < MAX_DEPTH) & (polyp > 0.5)

    def carry(self, pose: Pose, hits: Hits, frame: int, next_pose: Pose) -> np.ndarray:
        """Positions of the hit surface points, in camera space, in the frame after `frame`."""
        moved = next_pose.to_camera(pose.to_world(hits.points.astype(np.float64)))
        if self.forceps is not None:
            pairs = zip(self.forceps.capsules(frame), self.forceps.capsules(frame + 1), strict=True)
            for number, (now, then) in enumerate(pairs):
                on = hits.part == number
                moved[on] = then.place(now.local(hits.points[on]))
        return moved


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row scalar product of two `(n, 3)`."""
    return np.einsum("ij,ij->i", a, b)
