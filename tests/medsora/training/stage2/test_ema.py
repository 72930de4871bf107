"""The average follows the weights from the first steps on, and is what samples are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsora.sampling.pipeline import MedSoraPipeline
from medsora.training.run import described
from medsora.training.stage2.build import build_denoiser
from medsora.training.stage2.ema import Ema
from medsora.vae import FrequencyCompensatedVAE
from tests.support import tiny_training as tiny


def test_a_short_runs_average_is_not_its_initialisation(tmp_path: Path, clips: Path) -> None:
    model = build_denoiser(tiny.tiny_config(tmp_path, clips), 4)
    first = model.final.linear.weight.detach().clone()
    ema = Ema(model, decay=0.9999)
    for step in range(1, 21):
        with torch.no_grad():
            model.final.linear.weight.fill_(float(step))
        ema.update()
    with ema.applied() as averaged:
        average = averaged.final.linear.weight.detach().clone()
    assert not torch.allclose(average, first)
    assert 14 < float(average.mean()) < 20  # decay 0.9999 alone would leave it at 0.02
    assert float(model.final.linear.weight.detach().mean()) == 20


def test_samples_are_made_from_the_average(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[np.ndarray] = []
    monkeypatch.setattr(described, "write_video", lambda path, video, *a, **k: written.append(video))
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path=str(vae_folder),
        alignment__weight=0,
        train_dit__phases=[{"lr": 0.05, "batch": 2}],
        train_dit__eval_every=100,
    )
    with tiny.nothing_silent():
        run = tiny.train("dit", config)
    (sampled,) = written
    options = {"seeds": [0], "num_inference_steps": 2, "output_type": "uint8"}
    averaged, raw = (MedSoraPipeline.from_run(run, raw=raw)(**options).frames[0] for raw in (False, True))
    assert np.array_equal(sampled, averaged)
    assert not np.array_equal(sampled, raw)


def test_samples_that_are_not_finite_are_left_out_with_a_warning(
    clips: Path, vae_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae = FrequencyCompensatedVAE.from_pretrained(vae_folder)
    vae.base.decoder.conv_out.conv.bias.data.fill_(torch.nan)
    vae.save_pretrained(tmp_path / "vae")
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path=str(tmp_path / "vae"),
        alignment__weight=0,
        train_dit__phases=[{"lr": 0.05, "batch": 2}],
        train_dit__eval_every=100,
    )
    run = tiny.train("dit", config)
    assert "the frames of seed 0 are NaN or infinite" in caplog.text
    assert not list((run / "samples").rglob("*.mp4"))
    MedSoraPipeline.from_run(run)
