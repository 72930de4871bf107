"""Joint images as latents (§3.4), in both encodings."""

from __future__ import annotations

from torch import Tensor

from medsora.config.schema import Config
from medsora.vae import VideoVAE


def image_latents(config: Config, vae: VideoVAE) -> int:
    """Return how many latents the joint images of one sample become: count/4 packed, count single."""
    together = _encoded_together(vae, config.images.encoding)
    return config.images.count // together * vae.frames_to_latents(together)


def image_moments(vae: VideoVAE, images: Tensor, encoding: str) -> tuple[Tensor, Tensor]:
    """Encode joint images (B, K, 3, H, W) to mean and log-variance (B, n - f, C, h, w), unscaled.

    `packed` takes groups of 8 through the causal VAE together (2 latents each), `single` each image alone.
    """
    groups = images.reshape(-1, _encoded_together(vae, encoding), *images.shape[2:])
    mean, logvar = vae.encode_moments(groups)
    return tuple(part.reshape(images.shape[0], -1, *part.shape[2:]) for part in (mean, logvar))


def _encoded_together(vae: VideoVAE, encoding: str) -> int:
    return vae.frames_per_chunk if encoding == "packed" else 1
