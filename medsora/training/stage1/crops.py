"""Random crops of stage 1's clips: a VAE for large frames is trained on parts of them (`train_vae.crop`)."""

from __future__ import annotations

import torch

from medsora.config.schema import Config
from medsora.training.randomness import generator_for
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer

SizedModel = FrequencyCompensatedVAE | VQTokenizer | type[FrequencyCompensatedVAE]


def check_crop(config: Config, vae: SizedModel) -> None:
    """Raise `ValueError` unless `train_vae.crop` is a size that the VAE returns, and fits into the clips."""
    crop, smaller_side = config.train_vae.crop, min(config.data.height_width)
    if crop is None:
        return
    vae.check_video_shape(config.data.frames, crop, crop)
    if crop > smaller_side:
        raise ValueError(
            f"train_vae.crop is {crop} pixels, but the clips have {smaller_side} (data.size); "
            "choose a smaller crop, or null."
        )


def random_crops(video: torch.Tensor, side: int | None, seed: int, samples: torch.Tensor) -> torch.Tensor:
    """Crop a square of `side` pixels of every clip (B, F, 3, H, W), at a position drawn by its sample number.

    Returns (B, F, 3, side, side); with None the clips as they are.
    """
    if side is None:
        return video
    crops = []
    for clip, sample in zip(video, samples, strict=True):
        draw = generator_for(seed, "crop", int(sample))
        top, left = (int(torch.randint(whole - side + 1, (), generator=draw)) for whole in clip.shape[-2:])
        crops.append(clip[..., top : top + side, left : left + side])
    return torch.stack(crops)
