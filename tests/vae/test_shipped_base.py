"""medsora.training.export_base, medsora.vae.base: the bases that ship: small, load strictly, and return
phantom clips that they never saw.
"""

from __future__ import annotations

import pytest

from medsora.training.export_base import unseen_metrics
from medsora.vae import FrequencyCompensatedVAE
from tests.support.paths import CONFIGS


@pytest.mark.parametrize(
    ("name", "most_bytes", "most_parameters"),
    [("phantom_base", 1_000_000, 500_000), ("phantom_base_128", 4 * 2**20, 1_700_000)],
)
def test_they_are_small(name: str, most_bytes: int, most_parameters: int) -> None:
    weights = CONFIGS / f"{name}.safetensors"
    assert weights.stat().st_size <= most_bytes
    vae = FrequencyCompensatedVAE.from_base(CONFIGS / f"{name}.json", compensation=False, weights=weights)
    assert sum(parameter.numel() for parameter in vae.parameters()) < most_parameters
    assert vae.latent_channels == 16


@pytest.mark.parametrize(
    ("name", "size_px", "clips", "psnr_db", "ssim", "sharpness"),
    [("phantom_base", 64, 6, 26, 0.6, 1), ("phantom_base_128", 128, 3, 30.5, 0.83, 0.3)],
)
def test_they_reconstruct_unseen_phantom_clips(
    name: str, size_px: int, clips: int, psnr_db: float, ssim: float, sharpness: float
) -> None:
    vae = FrequencyCompensatedVAE.from_base(CONFIGS / f"{name}.json", weights=CONFIGS / f"{name}.safetensors")
    metrics = unseen_metrics(vae, clips, size_px)
    assert metrics["PSNR (dB)"] >= psnr_db
    assert metrics["SSIM"] > ssim
    assert abs(metrics["sharpness (decades; 0: as the clips)"]) < sharpness
