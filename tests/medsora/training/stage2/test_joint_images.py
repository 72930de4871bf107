"""medsora.training.stage2.loop, medsora.training.joint_images: joint images in both encodings and mixings:
how many latents they become, none where they are switched off; alignment ignores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medsora.denoiser import MedSora
from medsora.flow_prior import alignment_loss
from tests.support import tiny_training as tiny


@pytest.mark.parametrize(
    ("encoding", "count", "mixing", "cache"),
    [
        ("packed", 8, "isolated", "off"),
        ("packed", 16, "mixed", "disk"),
        ("single", 3, "isolated", "disk"),
        ("single", 2, "mixed", "off"),
        ("packed", 0, "isolated", "disk"),
    ],
)
def test_a_step_with_joint_images(
    encoding: str,
    count: int,
    mixing: str,
    cache: str,
    clips: Path,
    vae_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents = count // 4 if encoding == "packed" else count
    seen: dict[str, Any] = {}
    forward = MedSora.forward

    def noted_forward(self, z, t, num_images=0, **options):
        if torch.is_grad_enabled():
            seen["trained"] = (tuple(z.shape), num_images)
        else:
            seen["evaluated or sampled"] = (z.shape[1], num_images)  # sampling comes last
        return forward(self, z, t, num_images=num_images, **options)

    def noted_alignment(features, targets, t, **options):
        seen["features"] = {tuple(feature.shape) for feature in features}
        return alignment_loss(features, targets, t, **options)

    monkeypatch.setattr(MedSora, "forward", noted_forward)
    monkeypatch.setattr("medsora.training.stage2.loss.alignment_loss", noted_alignment)
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path=str(vae_folder),
        images__encoding=encoding,
        images__count=count,
        denoiser__mixing=mixing,
        cache__latents=cache,
        train_dit__max_steps=1,
    )
    run = tiny.train("dit", config)
    assert seen["trained"] == ((2, 4 + latents, 4, 4, 4), latents)
    assert seen["features"] == {(2, 4, 4, 32)}  # the clip's four latent frames alone
    carried = latents if mixing == "mixed" else 0
    assert seen["evaluated or sampled"] == (4 + carried, carried)
    (loss,) = [line["loss/total"] for line in tiny.log_lines(run) if "loss/total" in line]
    assert 0.5 < loss < 2
