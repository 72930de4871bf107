"""A causal VAE small enough for unit tests, as a diffusers folder and wrapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.choices import COMPENSATION_KINDS

TINY = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture
def base() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(**TINY).eval()


@pytest.fixture
def base_folder(base: AutoencoderKLCogVideoX, tmp_path: Path) -> Path:
    """A pipeline's folder, with the VAE in its subfolder."""
    base.save_pretrained(tmp_path / "pipeline" / "vae")
    return tmp_path / "pipeline"


@pytest.fixture(params=COMPENSATION_KINDS)
def vae(base_folder: Path, request: pytest.FixtureRequest) -> FrequencyCompensatedVAE:
    """A wrapped base with an untrained compensation of each kind."""
    return FrequencyCompensatedVAE.from_base(base_folder, compensation_kind=request.param)


@pytest.fixture
def trained(vae: FrequencyCompensatedVAE) -> FrequencyCompensatedVAE:
    """As if its compensation had learnt something: no convolution of it is zero any more."""
    with torch.no_grad():
        for parameter in vae.compensation_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def random_video(frames: int, side: int = 32, batch: int = 1) -> torch.Tensor:
    """Noise in [-1, 1], (B, F, 3, side, side)."""
    return torch.rand(batch, frames, 3, side, side) * 2 - 1
