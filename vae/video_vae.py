"""Base class of all VAEs: video to scaled latents and back, in valid shapes.

Shapes: video `(B, F, 3, H, W)`, RGB in [-1, 1]; latents `(B, n, C, h, w)`. `scale` and `unscale` are the only
two places that use `scaling_factor`: everything else works on scaled latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from medsora.vae import shapes
from medsora.vae.base import StrictModel

Generators = torch.Generator | Sequence[torch.Generator] | None

VIDEOS_AT_ONCE = 4  # bounds the memory of encoding and decoding without gradients


class VideoVAE(StrictModel):
    """Base class of VAEs: `self.base`, of `base_class`, is diffusers' model, whose latents are unscaled.

    A subclass has the setting `scaling_factor` and defines its latents by the class's attributes,
    `encode_moments` and `_decode`. Those here are the causal VAE's.
    """

    # Valid video shapes, and the frames and pixels of a latent; `vae.shapes` explains the numbers.
    frames_per_latent: ClassVar[int] = shapes.FRAMES_PER_LATENT
    frames_per_chunk: ClassVar[int] = shapes.FRAMES_PER_CHUNK  # frames encoded together
    pixels_per_latent: ClassVar[int] = shapes.PIXELS_PER_LATENT  # along a side
    frames_to_latents = staticmethod(shapes.frames_to_latents)
    check_video_shape = staticmethod(shapes.check_video_shape)

    # Sizes and scale

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.base.config.latent_channels

    @property
    def scaling_factor(self) -> float:
        """1 / standard deviation of the latents, so that the denoiser sees about unit variance."""
        return self.config.scaling_factor

    def set_scaling_factor(self, factor: float) -> None:
        """Keep a measured factor (`measure_scaling_factor`) in the config that is saved."""
        self.register_to_config(scaling_factor=float(factor))

    def scale(self, z: Tensor) -> Tensor:
        """The base's latents -> what the denoiser works on."""
        return z * self.scaling_factor

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return z / self.scaling_factor

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(n, C, h, w) of a video's latents. Raises `ValueError` as `check_video_shape`."""
        self.check_video_shape(frames, height, width)
        sides = (side // self.pixels_per_latent for side in (height, width))
        return self.frames_to_latents(frames), self.latent_channels, *sides

    # Video to latents and back

    def enable_tiling(self, *_: object, **__: object) -> None:
        """Raise `ValueError`: few videos are decoded at a time, and chunk by chunk, as it is."""
        raise ValueError(
            f"tiling and slicing are not supported: the VAE takes {VIDEOS_AT_ONCE} videos at a time already; "
            "take bf16 or a smaller size instead."
        )

    enable_slicing = enable_tiling

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video `(B, F, 3, H, W)` -> mean and log-variance `(B, n, C, h, w)` of the unscaled latents.

        Raises `ValueError` for a shape that the VAE cannot return unchanged (`check_video_shape`).
        """
        raise NotImplementedError

    def _decode(self, unscaled: Tensor) -> Tensor:
        """Unscaled latents -> pixels, `_clamped`."""
        raise NotImplementedError

    def sample_latents(
        self, mean: Tensor, logvar: Tensor, generator: Generators = None, noise: Tensor | None = None
    ) -> Tensor:
        """Scaled latents drawn from the moments; `noise` (same shape, unit normal) replaces the generator."""
        return self.scale(draw(mean, logvar, generator, noise))

    def encode(self, video: Tensor, *, sample: bool = False, generator: Generators = None) -> Tensor:
        """Video `(B, F, 3, H, W)` -> scaled latents `(B, n, C, h, w)`: the mean, or a draw if `sample`."""
        mean, logvar = self.encode_moments(video)
        return self.sample_latents(mean, logvar, generator) if sample else self.scale(mean)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents `(B, n, C, h, w)` -> pixels `(B, F, 3, H, W)`, clamped unless training.

        A clamped pixel that was infinite is NaN: what overflowed does not pass for black or white.
        """
        if z.dim() != 5 or z.shape[2] != self.latent_channels:
            raise ValueError(
                f"latents of shape {tuple(z.shape)} cannot be decoded: "
                f"expected (B, n, {self.latent_channels}, h, w)"
            )
        return self._decode(self.unscale(z))

    def reconstruct(self, video: Tensor) -> Tensor:
        """Video `(B, F, 3, H, W)` as it comes back from the mean of its latents."""
        return self.decode(self.encode(video))

    def _check_video(self, video: Tensor) -> None:
        if video.dim() != 5 or video.shape[2] != 3:
            raise ValueError(
                f"a video of shape {tuple(video.shape)} cannot be encoded: expected (B, F, 3, H, W)"
            )
        self.check_video_shape(video.shape[1], video.shape[3], video.shape[4])

    @staticmethod
    def _slices(batch: Tensor) -> Sequence[Tensor]:
        """The whole batch where gradients flow, else even parts of a few videos.

        Even, so that none is left alone: on a CPU, PyTorch gives a lone small video to a convolution that is
        several times slower than the one for two.
        """
        parts = 1 if torch.is_grad_enabled() else -(-batch.shape[0] // VIDEOS_AT_ONCE)
        return batch.tensor_split(parts)


def draw(mean: Tensor, logvar: Tensor, generator: Generators = None, noise: Tensor | None = None) -> Tensor:
    """Return unscaled latents drawn from their moments."""
    if noise is None:
        generator = list(generator) if isinstance(generator, Sequence) else generator
        first = generator[0] if isinstance(generator, list) else generator
        on_host = first is not None and first.device.type == "cpu"
        place = torch.device("cpu") if on_host else mean.device
        noise = randn_tensor(mean.shape, generator=generator, device=place, dtype=mean.dtype)
        if on_host and mean.is_cuda:  # from pinned memory, so that the host need not wait
            noise = noise.pin_memory().to(mean.device, non_blocking=True)
    return mean + torch.exp(0.5 * logvar) * noise
