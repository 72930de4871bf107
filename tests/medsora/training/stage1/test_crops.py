"""Stage 1 on random squares of its clips (`train_vae.crop`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsora.config.load import load_config
from medsora.training.stage1.crops import check_crop, random_crops
from medsora.vae import FrequencyCompensatedVAE
from tests.support import tiny_training as tiny
from tests.support.paths import CONFIGS

PHANTOM = CONFIGS / "phantom.yaml"


def test_a_crop_is_a_square_of_its_clip_that_the_sample_number_chooses() -> None:
    pixels = torch.arange(5 * 7).view(1, 1, 1, 5, 7).expand(64, 2, 3, 5, 7)
    samples = torch.arange(64)
    crops = random_crops(pixels, 4, 0, samples)
    assert crops.shape == (64, 2, 3, 4, 4)
    corners = crops[:, 0, 0, 0, 0]
    assert set(corners.tolist()) == {7 * top + left for top in range(2) for left in range(4)}
    assert torch.equal(crops - corners.view(-1, 1, 1, 1, 1), crops[:1].expand_as(crops) - corners[0])
    assert torch.equal(random_crops(pixels[:3], 4, 0, samples[40:43]), crops[40:43])
    assert not torch.equal(random_crops(pixels, 4, 1, samples), crops)
    assert random_crops(pixels, None, 0, samples) is pixels


@pytest.mark.parametrize(
    ("crop", "words"), [(48, None), (64, None), (80, "clips have 64"), (40, "valid sizes are 32 and 48")]
)
def test_crops_that_do_not_fit_are_refused(crop: int, words: str | None) -> None:
    config = load_config(PHANTOM, [f"train_vae.crop={crop}"])
    if words is None:
        check_crop(config, FrequencyCompensatedVAE)
    else:
        with pytest.raises(ValueError, match=words):
            check_crop(config, FrequencyCompensatedVAE)


def test_stage_1_trains_on_crops_and_validates_on_whole_clips(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(tmp_path, clips, train_vae__crop=16, train_vae__max_steps=1)
    trained, encoded = [], []
    forward, encode = FrequencyCompensatedVAE.forward, FrequencyCompensatedVAE.encode

    def noted_forward(vae, video, **options):
        trained.append(tuple(video.shape))
        return forward(vae, video, **options)

    def noted_encode(vae, video, **options):
        encoded.append(tuple(video.shape[-2:]))
        return encode(vae, video, **options)

    monkeypatch.setattr(FrequencyCompensatedVAE, "forward", noted_forward)
    monkeypatch.setattr(FrequencyCompensatedVAE, "encode", noted_encode)
    tiny.train("vae", config)
    assert trained == [(2, 16, 3, 16, 16)]
    assert set(encoded) == {(32, 32)}
