"""The model that ships (medsora.saved.find, medsora.sampling.pipeline): it is small, whole, found by its name
from anywhere, and samples what is requested.
"""

from __future__ import annotations

import numpy as np
import pytest

from medsora import MedSoraPipeline
from medsora.config.load import load_config
from medsora.config.shipped import models_folder
from medsora.saved.find import find_base
from medsora.training.export_base import unseen_metrics
from medsora.vae import FrequencyCompensatedVAE

NAME, MAX_BYTES = "phantom", 10 * 2**20
FEW_STEPS = {"num_inference_steps": 2, "sampler": "dpmpp", "output_type": "uint8"}


@pytest.fixture(scope="module")
def pipeline() -> MedSoraPipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        pipeline = MedSoraPipeline.from_pretrained(NAME)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_small_and_reports_where_it_comes_from() -> None:
    folder = models_folder() / NAME
    assert sum(path.stat().st_size for path in (folder / "denoiser").iterdir()) <= MAX_BYTES
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("apache-2.0", "phantom", "train_dit.py"):
        assert words in card


def test_its_denoiser_is_that_of_its_config_and_its_vae_the_base_of_the_next(
    pipeline: MedSoraPipeline,
) -> None:
    config = load_config("phantom_model")
    for key, value in config.denoiser.overrides.items():
        assert pipeline.denoiser.config[key] == value
    base, weights = find_base(config)
    vae = FrequencyCompensatedVAE.from_base(base, compensation=False, weights=weights)
    ours = pipeline.vae.base_state_dict()
    for name, value in vae.base_state_dict().items():
        np.testing.assert_array_equal(ours[name].float().numpy(), value.float().numpy(), err_msg=name)


def test_its_vae_keeps_unseen_phantom_clips(pipeline: MedSoraPipeline) -> None:
    metrics = unseen_metrics(pipeline.vae, 4, 64)
    assert metrics["PSNR (dB)"] > 29.5
    assert metrics["SSIM"] > 0.83
    assert abs(metrics["sharpness (decades; 0: as the clips)"]) < 0.3


def test_it_samples_what_is_requested(pipeline: MedSoraPipeline) -> None:
    assert sorted(pipeline.labels) == ["instrument", "neither", "polyp"]
    clips = pipeline(seeds=[0, 0], label=["polyp", "neither"], guidance_scale=2, **FEW_STEPS).frames
    assert clips.shape == (2, 17, 64, 64, 3)
    assert (clips[0] != clips[1]).any()
    longer = pipeline(seeds=[0], first_frames=clips[0, -9:], **FEW_STEPS).frames[0]
    difference = np.abs(longer[:9].astype(int) - clips[0, -9:]).mean()
    assert difference < 12
