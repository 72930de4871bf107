"""The protocol of StyleGAN-V's scripts (`fvd2048_16f`, `fid50k_full`, `is50k`) as Endora's authors ran them.

Most published values on endoscopic video come from it. FVD compares one random window of each real video with
the first frames of each generated one, at most 2,048 on either side and every frame taken; FID compares the
first 50,000 generated frames with all real ones, and the Inception Score takes the same 50,000. Frames were
prepared as JPEG files. Covariances are divided by n.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medsora.data.reading.resize import height_width
from medsora.evaluation.features.clip_set import ClipSet, Pick, Resize
from medsora.evaluation.settings import EvaluationSettings

MAX_CLIPS, MAX_GENERATED_FRAMES = 2048, 50_000
JPEG_QUALITY = 75  # Pillow's default: the published script passes 95 under a name that Pillow ignores
CHOICE = (
    "FVD: one random window of each real video, the first frames of each generated one, at most 2048 of "
    "either; FID and IS: at most 50000 generated frames, FID against all real ones"
)


def _lanczos_jpeg(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return `image`, uint8 (h, w, 3), as Endora's script prepares it: uint8 (H, W, 3).

    Scaled by Pillow's Lanczos until it just covers `size`, cut out in the middle, coded as JPEG and decoded.
    """
    height, width = height_width(size)
    scale = max(height / image.shape[0], width / image.shape[1])
    scaled = max(round(image.shape[1] * scale), width), max(round(image.shape[0] * scale), height)
    picture = Image.fromarray(image)
    if picture.size != scaled:
        picture = picture.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    file = io.BytesIO()
    picture.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file))


_WORDS = "Pillow Lanczos, scaled to cover, cropped in the middle, JPEG of quality 75"
LANCZOS_JPEG = Resize(_WORDS, _lanczos_jpeg)


def choose_side(settings: EvaluationSettings, *, generated: bool) -> dict[str, ClipSet]:
    """Return one side's "clips" of FVD and, as clips of one frame, its "frames" of FID and IS.

    Raises `BadInput` with one sentence if there is no folder or no usable clip in it.
    """
    windows = {"stride": 1, "resize": LANCZOS_JPEG, "generated": generated}
    windows |= {} if generated else settings.of_real
    root, pick = (settings.fake, Pick.FIRST) if generated else (settings.real, Pick.RANDOM)
    side = {"clips": settings.choose(root, MAX_CLIPS, **windows, pick=pick)}
    if {"fid", "is"} & set(settings.metrics):
        count = MAX_GENERATED_FRAMES if generated else None
        side["frames"] = settings.choose(root, count, **windows, frames=1, pick=Pick.EVERY)
    return side
