"""medsora.training.stage1.evaluation, medsora.training.stage1.stage: held-out reconstructions: the metrics
with and without compensation, a VAE that is left as it was, and the scale of trained latents.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsora.data.reading.pixels import frames_to_video
from medsora.data.reading.video_io import read_frames
from medsora.saved.find import find_vae, load_vae
from medsora.training.stage1.evaluation import MEASURES, compensation_off, evaluate_reconstruction
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.quality import psnr
from tests.support import tiny_training as tiny

NAMES = {f"held_out/{base}{name}" for base in ("", "base_") for name in MEASURES}


@pytest.fixture
def vae(vae_folder: Path) -> FrequencyCompensatedVAE:
    return FrequencyCompensatedVAE.from_pretrained(vae_folder)


@pytest.fixture
def items() -> list[dict[str, object]]:
    return [{"video": torch.rand(8, 3, 32, 32) * 2 - 1, "name": name} for name in ("a.mkv", "b.mkv")]


@pytest.mark.parametrize("training", [True, False])
def test_figures_are_means_over_clips_with_and_without_compensation(
    vae: FrequencyCompensatedVAE, items: list[dict[str, object]], training: bool
) -> None:
    metrics, rows = evaluate_reconstruction(vae.train(training), items)
    assert vae.training == training
    assert set(metrics) == NAMES | {"held_out/mean_colour_psnr"}
    videos = torch.stack([item["video"] for item in items])
    vae.eval()
    with torch.no_grad():
        expected = psnr(vae.decode(vae.encode(videos)), videos).mean()
    assert metrics["held_out/psnr"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["held_out/psnr"] != metrics["held_out/base_psnr"]
    labels = ["reconstruction", "base_reconstruction"]
    assert [label for label, _ in rows] == ["held out: a.mkv", *labels, "held out: b.mkv", *labels]
    assert all(frames.dtype == np.uint8 and frames.shape == (8, 32, 32, 3) for _, frames in rows)
    assert not np.array_equal(rows[1][1], rows[2][1])


def test_a_vae_without_compensation_has_no_figures_of_its_base(items: list[dict[str, object]]) -> None:
    metrics, _ = evaluate_reconstruction(
        FrequencyCompensatedVAE.from_base(tiny.BASE, compensation=False), items
    )
    assert not any("base_" in name for name in metrics)


@torch.no_grad()
def test_compensation_is_off_for_a_while(vae: FrequencyCompensatedVAE) -> None:
    video = torch.rand(1, 8, 3, 32, 32) * 2 - 1
    vae.eval()
    before = vae.encode(video)
    with compensation_off(vae):
        off = vae.encode(video)
    assert not torch.equal(off, before)
    assert torch.equal(vae.encode(video), before)


def test_trained_latents_are_scaled_to_the_configured_deviation(clips: Path, tmp_path: Path) -> None:
    changes = {"train": "all", "latent_std": 0.5, "max_steps": 1, "eval_every": 9}
    config = tiny.tiny_config(
        tmp_path, clips, **{f"train_vae__{key}": value for key, value in changes.items()}
    )
    tiny.train("vae", config)
    vae = load_vae(find_vae(config.vae_dir))
    videos = torch.stack([frames_to_video(read_frames(path)[:16]) for path in sorted(clips.glob("*.mkv"))])
    with torch.no_grad():
        mean, logvar = vae.encode_moments(videos)
    torch.manual_seed(0)
    latents = vae.scale(mean + torch.randn_like(mean) * (logvar / 2).exp())
    assert float(latents.std()) == pytest.approx(0.5, rel=0.05)
