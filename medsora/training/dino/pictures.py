"""Flow pictures of phantom clips, kept on disk: the encoder's training and test data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from medsora.data.phantom import KINDS, clip_seed, render_clip
from medsora.data.reading.pixels import frames_to_video
from medsora.errors import BadInput
from medsora.flow_prior import build_estimator, flow_to_rgb
from medsora.runtime.digests import sha256
from medsora.runtime.files import write_json, written_beside
from medsora.runtime.progress_bar import progress_bar
from medsora.saved.limits import read_json_object

DIGESTS = "sha256"  # key of the digests of the files beside the recipe
FRAMES = 18  # one more than a clip's
LOW_MOTION_PX = 0.05  # mean over a frame; below it, a picture shows the estimator's noise


class FlowPictures(NamedTuple):
    """Pictures of the flow between consecutive frames, with the ground truth of each."""

    pictures: np.ndarray  # uint8 (N, 3, H, W), a memory map
    clip: np.ndarray  # (N,) the clip's number
    instrument: np.ndarray  # bool (N,), whether an instrument is in the clip
    motion: np.ndarray  # float32 (N, 4): means of x, y, expansion, rotation over the largest (Eq. 13)
    moving: np.ndarray  # bool (N,), whether there is motion to be seen


def flow_pictures(folder: Path, clips: int, size_px: int, seed: int) -> FlowPictures:
    """Render `clips` phantom clips, estimate their flow and colour it, unless `folder` holds the pictures.

    Raises `BadInput` for a folder that holds others, or damaged ones (earlier versions' have no digest).
    """
    recipe = {"clips": clips, "size_px": size_px, "seed": seed, "estimator": "dis", "frames": FRAMES}
    done = folder / "pictures.json"
    if done.is_file():
        kept = read_json_object(done)
        digests = kept.pop(DIGESTS, None)
        if kept != recipe:
            raise BadInput(f"{folder} holds pictures of another recipe: take another folder or delete it.")
        if digests not in (None, _digests(folder)):
            raise BadInput(f"the pictures in {folder} are damaged: delete it, and they are made again.")
        return _opened(folder)
    search, flows = build_estimator("dis"), FRAMES - 1
    clip_numbers = np.repeat(np.arange(clips), flows)
    kinds = [KINDS[number % len(KINDS)] for number in range(clips)]
    motion, moving = np.empty((clips * flows, 4), np.float32), np.empty(clips * flows, bool)
    shape = (clips * flows, 3, size_px, size_px)
    # Not through a memory map, which would crash the process on a full disk.
    with written_beside(folder / "pictures.npy") as beside, beside.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for number in progress_bar("flow pictures", range(clips), unit="clip"):
            clip = render_clip(
                clip_seed(seed, number),
                FRAMES,
                size_px,
                polyp=kinds[number] == "polyp",
                instrument=kinds[number] == "instrument",
            )
            part = slice(number * flows, (number + 1) * flows)
            coloured = flow_to_rgb(search(frames_to_video(clip.video)[None]))[0]
            file.write((coloured * 255).round().byte().numpy().tobytes())
            motion[part], moving[part] = motion_of(clip.flow)
    with written_beside(folder / "known.npz") as beside, beside.open("wb") as file:
        instrument = np.repeat([kind == "instrument" for kind in kinds], flows)
        np.savez(file, clip=clip_numbers, instrument=instrument, motion=motion, moving=moving)
    write_json(done, recipe | {DIGESTS: _digests(folder)})
    return _opened(folder)


def motion_of(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion (F, 4) of a flow (F, 2, H, W), see `FlowPictures`, and which frames move (F,)."""
    side = np.array(flow.shape[-2:])
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in side)
    speed = np.hypot(flow[:, 0], flow[:, 1])
    largest = np.maximum(speed.max(axis=(1, 2)), 1e-6)[:, None, None]
    u, v = flow[:, 0] / largest, flow[:, 1] / largest
    expansion, rotation = u * x + v * y[:, None], v * x - u * y[:, None]
    motion = np.stack([part.mean(axis=(1, 2)) for part in (u, v, expansion, rotation)], axis=1)
    return motion, speed.mean(axis=(1, 2)) > LOW_MOTION_PX


def as_pictures(values: np.ndarray) -> torch.Tensor:
    """Return uint8 pictures as float32 in [0, 1]."""
    return torch.tensor(values).float() / 255


def _digests(folder: Path) -> list[str]:
    return [sha256(folder / name) for name in ("pictures.npy", "known.npz")]


def _opened(folder: Path) -> FlowPictures:
    with np.load(folder / "known.npz") as known:
        return FlowPictures(np.load(folder / "pictures.npy", mmap_mode="r"), **known)
