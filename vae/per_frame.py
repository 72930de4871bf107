"""A VAE that encodes every frame by itself: diffusers' AutoencoderKL, such as Stable Diffusion's.

F frames give F latents, whatever F is, and each side is divided by 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    ModelMixin,  # noqa: F401  diffusers looks for it beside the class that it loads
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from medsora.vae import shapes
from medsora.vae.base import base_from_config, load_base
from medsora.vae.video_vae import VideoVAE

FRAMES_AT_ONCE = 8  # bounds the memory of encoding and decoding without gradients


class PerFrameVAE(VideoVAE):
    """diffusers' AutoencoderKL (`self.base`) on videos. It is used as it is; no stage trains it.

    Made by `from_base`; `save_pretrained` and `from_pretrained` need no base again.

    base_config: the settings of `diffusers.AutoencoderKL`.
    scaling_factor: what latents are multiplied by; None takes the base's, 0.18215 unless it names another.
    """

    base_class = AutoencoderKL
    frames_per_latent: ClassVar[int] = 1
    frames_per_chunk: ClassVar[int] = 1

    @register_to_config
    def __init__(self, base_config: Mapping[str, Any], scaling_factor: float | None = None):
        super().__init__()
        self.base: AutoencoderKL = base_from_config(base_config, "base_config", AutoencoderKL)
        blocks = len(self.base.config.block_out_channels)
        if 2 ** (blocks - 1) != self.pixels_per_latent:
            raise ValueError(f"base_config has {blocks} blocks, but a latent of 8x8 pixels takes 4")
        self.set_scaling_factor(self.base.config.scaling_factor if scaling_factor is None else scaling_factor)

    @classmethod
    def from_base(
        cls, base: str | Path | Mapping[str, Any], weights: str | Path | None = None
    ) -> PerFrameVAE:
        """The base of `vae.base.load_base` (its arguments, its errors), such as stabilityai/sd-vae-ft-mse."""
        loaded = load_base(base, weights, AutoencoderKL)
        vae = cls({key: value for key, value in loaded.config.items() if not key.startswith("_")})
        vae.base.load_state_dict(loaded.state_dict())
        return vae.eval()

    @staticmethod
    def frames_to_latents(frames: int) -> int:
        """n for F frames, which is F. Raises `ValueError` unless there is one."""
        if frames < 1:
            raise ValueError(f"{frames} frames: a video has at least 1")
        return frames

    @classmethod
    def check_video_shape(cls, frames: int, height: int, width: int) -> None:
        """Raise `ValueError`, naming the next valid sizes, unless the sides are divisible by 16."""
        cls.frames_to_latents(frames)
        shapes.check_sides(height, width)

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video `(B, F, 3, H, W)` -> mean and log-variance `(B, F, C, h, w)` of the unscaled latents."""
        self._check_video(video)
        posteriors = [self.base.encode(part).latent_dist for part in self._frames(video)]
        moments = (torch.cat([getattr(part, name) for part in posteriors]) for name in ("mean", "logvar"))
        mean, logvar = (part.unflatten(0, video.shape[:2]) for part in moments)
        return mean, logvar

    def _decode(self, unscaled: Tensor) -> Tensor:
        parts = [self.base.decode(part).sample for part in self._frames(unscaled)]
        return self._clamped(torch.cat(parts).unflatten(0, unscaled.shape[:2]))

    @staticmethod
    def _frames(batch: Tensor) -> tuple[Tensor, ...]:
        """Frames of all samples: a few at a time where no gradients flow."""
        frames = batch.flatten(0, 1)
        return frames.split(len(frames) if torch.is_grad_enabled() else FRAMES_AT_ONCE)
