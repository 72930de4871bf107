"""Folders of pictures and masks, as Kvasir-SEG, CVC-ClinicDB and the phantom have them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from medsora.data.reading.frame_folder import IMAGE_SUFFIXES, read_image
from medsora.data.reading.picture_names import natural_order
from medsora.data.reading.resize import resize_and_crop
from medsora.downstream.clips import UNKNOWN, Samples, read_all
from medsora.errors import BadInput

# Names of the two folders, in lower case: Kvasir-SEG's, CVC-ClinicDB's, others'.
IMAGE_FOLDERS = ("images", "original", "image")
MASK_FOLDERS = ("masks", "ground truth", "mask")
BLACK, WHITE = 64, 191  # grey levels; between them a mask's pixel is neither
# JPEG changes blocks of 8 x 8 pixels that an edge crosses; farther from one, every pixel is black or white.
EDGE_PX, MAX_BETWEEN = 8, 0.2  # share of the pixels of a mask that are between black and white
LOSSY = (".jpg", ".jpeg")
MAX_COLOUR = 24  # grey levels by which the channels of a grey JPEG may differ


class Pair(NamedTuple):
    """A picture and the mask of the same name."""

    name: str
    image: Path
    mask: Path


def find_pairs(root: str | Path) -> list[Pair]:
    """Return the pictures and masks below `root` in natural order, paired by name without its ending.

    Raises `BadInput`: no folder of pictures or of masks, no picture, one without the other.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(f"there is no folder {root}; give one that holds images/ and masks/.")
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    sides = []
    for names, example in ((IMAGE_FOLDERS, "images"), (MASK_FOLDERS, "masks")):
        folder = next((folders[name] for name in names if name in folders), None)
        if folder is None:
            raise BadInput(
                f"{root} has no folder {example}/; expected images/ and masks/ (Kvasir-SEG) or Original/ and "
                "Ground Truth/ (CVC-ClinicDB)."
            )
        by_name: dict[str, Path] = {}
        for path in (folder / name for name in natural_order(os.listdir(folder))):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            if other := by_name.get(path.stem):
                raise BadInput(f"{folder} holds {other.name} and {path.name}: names must differ; remove one.")
            by_name[path.stem] = path
        sides.append(by_name)
    images, masks = sides
    for ours, theirs, what in ((images, masks, "mask"), (masks, images, "picture")):
        if lonely := [name for name in ours if name not in theirs]:
            more = f", nor have {len(lonely) - 1} more" if len(lonely) > 1 else ""
            raise BadInput(f"{ours[lonely[0]]} has no {what} of the same name{more}; add or remove it.")
    if not images:
        raise BadInput(f"{root} holds no pictures; expected files such as images/x.png and masks/x.png.")
    return [Pair(name, path, masks[name]) for name, path in images.items()]


def read_pairs(root: Path, pairs: Sequence[Pair], size: int) -> tuple[Samples, np.ndarray]:
    """Read the middle squares: pictures as clips of one frame, and masks, bool (n, size, size).

    Raises `BadInput`: a file does not decode, sizes differ, a mask is not black and white.
    """
    read = read_all(pairs, lambda pair: _read_pair(pair, size), str(root))
    values = [each[None, ..., :3] for each in read]
    samples = Samples(root, tuple(pair.name for pair in pairs), values, (UNKNOWN,) * len(pairs))
    return samples, np.stack([each[..., 3] > 0 for each in read])


def read_mask(path: Path) -> np.ndarray:
    """Return a mask upright, bool (H, W): 0 or black is outside; 1, or white as JPEG leaves it, inside.

    Raises `BadInput` if it has colours or a third value.
    """
    picture = read_image(path)
    if (picture.max(-1).astype(int) - picture.min(-1)).max() > MAX_COLOUR:
        raise BadInput(f"{path} has colours; expected a mask of black and white, for one class.")
    numbered = picture.max() == 1 and path.suffix.lower() not in LOSSY  # a stray level of JPEG is no class 1
    grey = picture[..., 1] * np.uint8(255 if numbered else 1)
    inside, between = grey > 127, (grey > BLACK) & (grey < WHITE)
    square = np.ones((2 * EDGE_PX + 1,) * 2, np.uint8)
    near_edge = cv2.dilate(inside.astype(np.uint8), square) != cv2.erode(inside.astype(np.uint8), square)
    if (between & ~near_edge).any() or between.mean() > MAX_BETWEEN:
        raise BadInput(f"{path} is no mask: it has grey areas; expected black (outside) and white (polyp).")
    return inside


def _read_pair(pair: Pair, size: int) -> np.ndarray:
    image, mask = read_image(pair.image), read_mask(pair.mask)
    if image.shape[:2] != mask.shape:
        sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, mask)]
        raise BadInput(f"{pair.image} has {sizes[0]} pixels and its mask {sizes[1]}; they must be equal.")
    white = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
    inside = resize_and_crop(white, size)[..., :1] > 127
    return np.concatenate([resize_and_crop(image, size), inside], axis=-1)
