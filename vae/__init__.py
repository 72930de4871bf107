"""Video to latents and back: the frequency-compensated causal VAE, its losses and its figures of merit."""

from vae.losses import VaeLoss, focal_frequency_loss
from vae.model import (
    FrequencyCompensatedVAE,
    VAEOutput,
    measure_scaling_factor,
)
from vae.shapes import check_video_shape, frames_to_latents

__all__ = [
    "FrequencyCompensatedVAE",
    "VAEOutput",
    "VaeLoss",
    "check_video_shape",
    "focal_frequency_loss",
    "frames_to_latents",
    "measure_scaling_factor",
]
