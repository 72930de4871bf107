"""Video to latents or codes and back: the causal VAE, a VQ tokenizer, their losses and quality metrics.

The names below load on first use, so that a command line that only needs `vae.shapes` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsora.vae.shapes import check_video_shape, frames_to_latents

if TYPE_CHECKING:
    from medsora.vae.losses import VaeLoss, focal_frequency_loss
    from medsora.vae.model import FrequencyCompensatedVAE, VAEOutput, measure_scaling_factor
    from medsora.vae.per_frame import PerFrameVAE
    from medsora.vae.tokenizer import VQTokenizer
    from medsora.vae.video_vae import VideoVAE

__all__ = [
    "FrequencyCompensatedVAE",
    "PerFrameVAE",
    "VAEOutput",
    "VQTokenizer",
    "VaeLoss",
    "VideoVAE",
    "check_video_shape",
    "focal_frequency_loss",
    "frames_to_latents",
    "measure_scaling_factor",
]

_HOMES = {
    "FrequencyCompensatedVAE": "medsora.vae.model",
    "PerFrameVAE": "medsora.vae.per_frame",
    "VAEOutput": "medsora.vae.model",
    "VQTokenizer": "medsora.vae.tokenizer",
    "VaeLoss": "medsora.vae.losses",
    "VideoVAE": "medsora.vae.video_vae",
    "focal_frequency_loss": "medsora.vae.losses",
    "measure_scaling_factor": "medsora.vae.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medsora.vae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


if __name__ == "vae":  # imported by the folder's name, before `medsora`
    from medsora.checkout import import_again

    import_again(__name__)
