"""One phantom clip: pictures, exact optical flow and what can be seen in both frames, from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.phantom.camera import Lens
from medsora.data.phantom.looks import find_look
from medsora.data.phantom.scene import Scene

KINDS = ("polyp", "instrument", "neither")
MAX_POLYP = 2.0  # more would be a stricture
_SUPERSAMPLING = 2
_SAME_POINT = 0.02  # relative difference in depth below which two rays met the same surface point


@dataclass(frozen=True)
class PhantomClip:
    """A rendered clip.

    Attributes:
        video: uint8 `(F, H, W, 3)` RGB.
        flow: float32 `(F-1, 2, H, W)`, pixels (x, y) that the surface in each pixel's centre moves from frame
            k to k+1; zero where the endoscope's mask is black.
        valid: bool `(F-1, H, W)`: that surface point is seen in both frames, inside picture and mask.
        polyp_mask: bool `(F, H, W)`: at least half of the pixel's rays meet the polyp, inside the
            endoscope's mask.
        polyp: whether a polyp was put on the wall.
        instrument: whether an instrument reaches into the picture.
        seed: what the clip was drawn from.
    """

    video: np.ndarray
    flow: np.ndarray
    valid: np.ndarray
    polyp_mask: np.ndarray
    polyp: bool
    instrument: bool
    seed: int

    @property
    def kind(self) -> str:
        """One of "polyp", "instrument" and "neither"."""
        return KINDS[0] if self.polyp else KINDS[1] if self.instrument else KINDS[2]


def render_clip(
    seed: int,
    frames: int = 17,
    size: int | tuple[int, int] = 64,
    *,
    polyp: bool | None = None,
    instrument: bool | None = None,
    polyp_size: float = 1.0,
    look: str = PHANTOM_LOOKS[0],
) -> PhantomClip:
    """Render the clip of `seed`; a longer clip begins with the frames of a shorter one.

    Args:
        seed: any non-negative integer.
        frames: number of frames, at least 1.
        size: side in pixels, or (height, width).
        polyp, instrument: None lets the seed choose (a third each: polyp, instrument, neither).
        polyp_size: how wide polyps are, times the usual; more than 0, at most `MAX_POLYP`.
        look: the endoscope, one of `PHANTOM_LOOKS`; the scene of a seed is the same in all.

    Raises:
        ValueError: no frames, an empty picture, a negative seed, a polyp that does not fit into the tube,
            both a polyp and an instrument, or an unknown look.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if seed < 0 or frames < 1 or min(height, width) < 8:
        raise ValueError(
            f"phantom of seed {seed}, {frames} frames, {height}x{width}: "
            "expected a seed of at least 0, 1 frame and 8 pixels per side"
        )
    check_polyp_size(polyp_size)
    polyp, instrument = choose_labels(seed, polyp, instrument)
    endoscope = find_look(look)
    scene = Scene(seed, polyp=polyp, instrument=instrument, polyp_size=polyp_size, look=endoscope)
    lens = Lens(height, width, endoscope.focal)
    rays, fine_rays = lens.rays(), lens.rays(_SUPERSAMPLING)
    mask = _vignette(scene.vignette, height, width, _SUPERSAMPLING)
    seen = _vignette(scene.vignette, height, width, 1).ravel() > 0.5

    video = np.empty((frames, height, width, 3), np.uint8)
    flow = np.zeros((frames - 1, 2, height, width), np.float32)
    valid = np.zeros((frames - 1, height, width), bool)
    polyp_mask = np.zeros((frames, height, width), bool)
    carried = np.empty((0, 3))  # the surface points of the last frame's pixels, in this frame's camera space
    for k in range(frames):
        pose, next_pose = scene.path.pose(scene.line, k), scene.path.pose(scene.line, k + 1)
        towards = carried / (np.linalg.norm(carried, axis=1, keepdims=True) + 1e-9)
        every = scene.trace(pose, np.concatenate([rays, towards.astype(np.float32)]), k)
        hits = every[: len(rays)]
        start = _before_the_wall(hits.distance.reshape(height, width))
        fine_hits = scene.trace(pose, fine_rays, k, start)
        colour = scene.radiance(pose, fine_rays, fine_hits, k) * mask.reshape(-1, 1)
        video[k] = np.round(_pixel_means(colour, height, width).clip(0, 1) * 255)
        if polyp:
            share = _pixel_means(scene.on_polyp(pose, fine_hits), height, width)
            polyp_mask[k] = (share >= 0.5) & seen.reshape(height, width)
        if k > 0:
            depth = np.linalg.norm(carried, axis=1)
            met = np.abs(every.distance[len(rays) :] - depth) < _SAME_POINT * depth
            pixels = lens.project(carried)
            landing = np.round(pixels).clip(0, [width - 1, height - 1]).astype(int)
            lit = seen & seen.reshape(height, width)[landing[:, 1], landing[:, 0]]
            ahead = lens.contains(pixels) & (carried[:, 2] > 0)
            valid[k - 1] = (met & lit & ahead).reshape(height, width)
            motion = np.where(seen[:, None], pixels - lens.pixels(), 0)
            flow[k - 1] = motion.T.reshape(2, height, width)
        carried = scene.carry(pose, hits, k, next_pose)
    return PhantomClip(video, flow, valid, polyp_mask, polyp, instrument, seed)


def check_polyp_size(polyp_size: float) -> None:
    """Raise `ValueError` for a polyp that is none, or that closes the tube."""
    if not 0 < polyp_size <= MAX_POLYP:
        raise ValueError(f"phantom: polyp_size is {polyp_size}, expected above 0, at most {MAX_POLYP}.")


def choose_labels(seed: int, polyp: bool | None, instrument: bool | None) -> tuple[bool, bool]:
    """The clip's exclusive labels: those requested, the rest drawn by the seed."""
    if polyp and instrument:
        raise ValueError("a phantom clip shows a polyp or an instrument, not both: choose one of them")
    allowed = [
        kind
        for kind, wanted, other in (("polyp", polyp, instrument), ("instrument", instrument, polyp))
        if wanted is not False and not other
    ]
    if not (polyp or instrument):
        allowed.append("neither")
    kind = allowed[np.random.default_rng([seed, len(KINDS)]).integers(len(allowed))]
    return kind == "polyp", kind == "instrument"


def _before_the_wall(distance: np.ndarray) -> np.ndarray:
    """Safe starting distances of the fine rays: short of the nearest hit among the neighbouring pixels."""
    nearest = cv2.erode(distance.astype(np.float32), np.ones((3, 3), np.uint8))
    return 0.85 * nearest.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1).ravel()


def _vignette(shape: str, height: int, width: int, supersampling: int) -> np.ndarray:
    """Brightness `(H·k, W·k)` of the endoscope's mask: 1 inside, black outside, a soft rim."""
    y, x = (
        np.abs((np.arange(side * supersampling) + 0.5) / supersampling - side / 2) / (min(height, width) / 2)
        for side in (height, width)
    )
    y, x = y[:, None], x[None, :]
    if shape == "none":
        return np.ones((len(y), x.shape[1]), np.float32)
    aspect = np.array([height, width]) / min(height, width)
    if shape == "octagon":
        beyond = x + y - (aspect.sum() - 0.36)
    elif shape == "circle":
        beyond = np.hypot(x, y) - 1.06 * np.max(aspect)
    else:  # a disc without its left and right rims
        beyond = np.maximum(np.hypot(x, y) - np.max(aspect), x - 0.8 * aspect[1])
    return np.clip(0.5 - beyond / 0.06, 0, 1).astype(np.float32)


def _pixel_means(of_rays: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average `(H·k·W·k, ...)` over the k x k rays of every pixel: `(H, W, ...)`."""
    k = _SUPERSAMPLING
    return of_rays.reshape(height, k, width, k, *of_rays.shape[1:]).mean(axis=(1, 3))
