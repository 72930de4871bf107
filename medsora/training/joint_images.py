"""Joint images as latents (§3.4), in both encodings."""

from __future__ import annotations

from torch import Tensor

from medsora.config.schema import Config
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.shapes import FRAMES_PER_CHUNK, LATENTS_PER_CHUNK


def image_latents(config: Config) -> int:
    """Return how many latents the joint images of one sample become: count/4 packed, count single."""
    count = config.images.count
    return count // FRAMES_PER_CHUNK * LATENTS_PER_CHUNK if config.images.encoding == "packed" else count


def image_moments(vae: FrequencyCompensatedVAE, images: Tensor, encoding: str) -> tuple[Tensor, Tensor]:
    """Encode joint images (B, K, 3, H, W) to mean and log-variance (B, n - f, C, h, w), unscaled.

    `packed` takes groups of 8 through the causal VAE together (2 latents each), `single` each image alone.
    """
    together = FRAMES_PER_CHUNK if encoding == "packed" else 1
    groups = images.reshape(-1, together, *images.shape[2:])
    mean, logvar = vae.encode_moments(groups)
    return tuple(part.reshape(images.shape[0], -1, *part.shape[2:]) for part in (mean, logvar))
