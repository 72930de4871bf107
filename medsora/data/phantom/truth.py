"""Ground truth of rendered clips: the camera's path, its focal length, and depth.

The wall stands still and the camera is a pinhole, so poses and depth are those of a rigid scene. Forceps move
by themselves, so their pixels have no depth here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.phantom.camera import Lens
from medsora.data.phantom.corpus import look_version, phantom_recipe
from medsora.data.phantom.looks import find_look
from medsora.data.phantom.render import KINDS
from medsora.data.phantom.scene import MAX_DEPTH, Scene


class Truth(NamedTuple):
    """A clip's scene and the lens that it was rendered through."""

    scene: Scene
    lens: Lens

    def poses(self, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return rotations, camera to world (n, 3, 3), and positions (n, 3) of the camera.

        Camera axes are x right, y down, z forward; the unit of length is the tube's mean radius.
        """
        poses = [self.scene.path.pose(self.scene.line, frame) for frame in frames]
        return np.stack([pose.rotation for pose in poses]), np.stack([pose.position for pose in poses])

    def depth(self, frame: int, pixels: np.ndarray) -> np.ndarray:
        """Return the wall's depth (n,) along the camera's axis at `pixels` (n, 2), x before y.

        The first pixel's centre is at (0, 0). NaN where an instrument or nothing within reach is seen.
        """
        pose = self.scene.path.pose(self.scene.line, frame)
        hits = self.scene.trace(pose, self.lens.rays_through(pixels), frame)
        return np.where((hits.part < 0) & (hits.distance < 0.99 * MAX_DEPTH), hits.points[:, 2], np.nan)


def find_truth(video: Path) -> Truth | None:
    """Return the truth of a clip as `write_phantom` left it; None for any other video.

    None, too, if today's renderer would draw other pictures from the clip's seed.
    """
    recipe = phantom_recipe(video.parent)
    try:
        number, seed = list(recipe["seeds"]).index(video.name), recipe["seeds"][video.name]
        looks = {look_version(look): look for look in PHANTOM_LOOKS}
        look, size = find_look(looks[recipe["look"]]), recipe["size"]
        polyp_size = recipe["polyp_size"]
    except (KeyError, TypeError, ValueError):
        return None
    kind = KINDS[number % len(KINDS)]
    scene = Scene(
        seed, polyp=kind == "polyp", instrument=kind == "instrument", polyp_size=polyp_size, look=look
    )
    return Truth(scene, Lens(size, size, look.focal))
