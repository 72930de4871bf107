"""Video to latents and back: the frequency-compensated causal VAE, its losses and its figures of merit."""

from vae.model import (
    FrequencyCompensatedVAE,
    VAEOutput,
    measure_scaling_factor,
)
from vae.shapes import check_video_shape, frames_to_latents

__all__ = [
    "FrequencyCompensatedVAE",
    "VAEOutput",
    "check_video_shape",
    "frames_to_latents",
    "measure_scaling_factor",
]
