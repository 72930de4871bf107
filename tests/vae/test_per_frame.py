"""medsora.vae.per_frame, medsora.vae.video_vae: AutoencoderKL frame by frame, any number of frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX

from medsora.vae import PerFrameVAE, measure_scaling_factor, per_frame
from tests.vae.conftest import TINY, random_video

SETTINGS = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
}


@pytest.fixture
def base() -> AutoencoderKL:
    return AutoencoderKL(**SETTINGS).eval()


@pytest.fixture
def folder(base: AutoencoderKL, tmp_path: Path) -> Path:
    base.save_pretrained(tmp_path / "sd" / "vae")
    return tmp_path / "sd"


@pytest.mark.parametrize("frames", [1, 3, 16])
@torch.no_grad()
def test_every_frame_is_encoded_and_decoded_by_itself(base: AutoencoderKL, folder: Path, frames: int) -> None:
    vae, video = PerFrameVAE.from_base(folder), random_video(frames, batch=2)
    mean, logvar = vae.encode_moments(video)
    assert mean.shape == (2, *vae.latent_shape(frames, 32, 32)) == (2, frames, 4, 4, 4)
    z = vae.encode(video)
    decoded = vae.decode(z)
    for frame in range(frames):
        of_frame = base.encode(video[:, frame]).latent_dist
        torch.testing.assert_close(mean[:, frame], of_frame.mean)
        torch.testing.assert_close(logvar[:, frame], of_frame.logvar)
        torch.testing.assert_close(z[:, frame], of_frame.mean * 0.18215)
        torch.testing.assert_close(decoded[:, frame], base.decode(of_frame.mean).sample.clamp(-1, 1))


@torch.no_grad()
def test_few_frames_are_decoded_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = PerFrameVAE.from_base(folder)
    z, counts, decode = torch.randn(2, 5, 4, 4, 4), [], vae.base.decode
    whole = vae.decode(z)
    monkeypatch.setattr(per_frame, "FRAMES_AT_ONCE", 4)
    monkeypatch.setattr(vae.base, "decode", lambda part: counts.append(len(part)) or decode(part))
    torch.testing.assert_close(vae.decode(z), whole)
    assert counts == [4, 4, 2]


@torch.no_grad()
def test_save_and_load_round_trip(folder: Path, tmp_path: Path) -> None:
    vae, video = PerFrameVAE.from_base(folder / "vae"), random_video(2)
    vae.save_pretrained(tmp_path / "saved")
    loaded = PerFrameVAE.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.encode(video), vae.encode(video))
    assert loaded.scaling_factor == 0.18215
    assert measure_scaling_factor(loaded, [video]) > 0


def test_comes_from_a_config_too(tmp_path: Path) -> None:
    (tmp_path / "vae.json").write_text(json.dumps(SETTINGS | {"latent_channels": 6, "scaling_factor": 0.5}))
    vae = PerFrameVAE.from_base(tmp_path / "vae.json")
    assert (vae.latent_channels, vae.scaling_factor) == (6, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda vae: PerFrameVAE.from_base(SETTINGS | {"latent_chanels": 4}),
            "did you mean 'latent_channels'",
        ),
        (lambda vae: PerFrameVAE.from_base({"block_out_channels": [8], "norm_num_groups": 4}), "takes 4"),
        (lambda vae: vae.encode(random_video(2, side=40)), "32 and 48"),
        (lambda vae: vae.encode(random_video(2)[0]), r"expected \(B, F, 3, H, W\)"),
        (lambda vae: vae.decode(torch.zeros(1, 2, 3, 4, 4)), r"expected \(B, n, 4, h, w\)"),
        (lambda vae: vae.frames_to_latents(0), "at least 1"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, make: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(PerFrameVAE.from_base(folder))


def test_a_causal_vae_s_folder_is_refused(tmp_path: Path) -> None:
    AutoencoderKLCogVideoX(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a AutoencoderKLCogVideoX, not an AutoencoderKL"):
        PerFrameVAE.from_base(tmp_path)
