"""medsora.training.export_base, medsora.vae.base: the small base that ships: under 1 MB, loads strictly, and
returns phantom clips that it never saw.
"""

from __future__ import annotations

import pytest

from medsora.training.export_base import unseen_figures
from medsora.vae import FrequencyCompensatedVAE
from tests.support.paths import CONFIGS

CONFIG, WEIGHTS = CONFIGS / "phantom_base.json", CONFIGS / "phantom_base.safetensors"


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    vae = FrequencyCompensatedVAE.from_base(CONFIG, compensation=False, weights=WEIGHTS)
    assert sum(parameter.numel() for parameter in vae.parameters()) < 500_000


def test_it_reconstructs_unseen_phantom_clips(capsys: pytest.CaptureFixture[str]) -> None:
    figures = unseen_figures(FrequencyCompensatedVAE.from_base(CONFIG, weights=WEIGHTS), clips=6)
    with capsys.disabled():
        baseline = figures["PSNR of each clip's mean colour (dB)"]
        print(f"\nshipped base: {figures['PSNR (dB)']:.2f} dB, mean colour {baseline:.2f} dB")
    assert figures["PSNR (dB)"] >= 26
    assert figures["SSIM"] > 0.6


def test_other_weights_are_refused() -> None:
    smaller = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    with pytest.raises(ValueError, match=r"another architecture|has shape"):
        FrequencyCompensatedVAE.from_base(smaller, weights=WEIGHTS)
