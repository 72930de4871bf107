"""medsora.training.dry_run.memory, tools.measure_memory: the estimate of `--dry-run`: what it counts is what
a real step allocates, and what a run really takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from medsora.baselines.endora import Endora
from medsora.config.load import save_config
from medsora.denoiser import MedSora
from medsora.denoiser.base import Denoiser
from medsora.training.dry_run.memory import (
    LiveBytes,
    MemoryEstimate,
    count_flops,
    estimate_denoiser,
    peak_bytes,
    preset_bytes,
)
from medsora.training.schedule import SampleKey
from medsora.training.stage2.build import build_denoiser_stage
from medsora.training.stage2.loss import DenoisingLoss
from medsora.vae import FrequencyCompensatedVAE, PerFrameVAE, VideoVAE, frames_to_latents
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_without_content_counts_what_a_real_one_allocates(checkpointing: bool) -> None:
    model = MedSora(**tiny.DENOISER, in_channels=4).train()
    if checkpointing:
        model.enable_gradient_checkpointing()

    def step() -> torch.Tensor:
        out = model(torch.zeros(3, 6, 4, 4, 4), torch.zeros(3, dtype=torch.long), num_images=2)
        return out.eps.square().mean() + sum(feature.square().mean() for feature in out.features)

    step()  # fills the tables that are kept
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        step().backward()
    assert peak_bytes([model], step) == pytest.approx(live.peak, rel=0.01)


def test_training_goes_on_after_an_estimate() -> None:
    model = MedSora(**tiny.DENOISER, in_channels=4).train()

    def step() -> torch.Tensor:  # at a size that no other test has made tables for
        out = model(torch.zeros(1, 7, 4, 10, 6), torch.zeros(1, dtype=torch.long), num_images=2)
        return out.eps.square().mean() + sum(feature.square().mean() for feature in out.features)

    estimated = peak_bytes([model], step)
    step().backward()
    assert peak_bytes([model], step) == estimated


def test_recomputing_saves_memory_in_the_estimate_too() -> None:
    model = MedSora(**{**tiny.DENOISER, "depth": 6}, in_channels=4).train()

    def step() -> torch.Tensor:
        return model(torch.zeros(8, 4, 4, 8, 8), torch.zeros(8, dtype=torch.long)).eps.square().mean()

    kept = peak_bytes([model], step)
    model.enable_gradient_checkpointing()
    assert peak_bytes([model], step) < 0.6 * kept
    assert peak_bytes([model], lambda: print(step().shape), gradients=False) < 0.4 * kept


def test_flops_of_a_step_are_three_forwards_of_its_products() -> None:
    """2 per multiply-add: the product, and in the backward pass one for each of its factors."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    forward = 2 * 5 * (8 * 16 + 16 * 4)
    x = torch.zeros(5, 8)
    assert count_flops([layers], lambda: print(layers(x).shape), gradients=False) == forward
    first_needs_no_gradient_of_x = 2 * 5 * 8 * 16
    counted = count_flops([layers], lambda: layers(x).sum())
    assert counted == 3 * forward - first_needs_no_gradient_of_x


@pytest.mark.parametrize(
    ("preset", "deep", "vae", "latents"),
    [
        ("tiny", MedSora.from_preset("tiny", depth=6, backend="torch"), FrequencyCompensatedVAE, (3, 16)),
        ("endora-tiny", Endora.from_preset("tiny"), PerFrameVAE, (9, 4)),
    ],
)
def test_a_presets_bytes_follow_from_shallow_models(
    preset: str, deep: Denoiser, vae: type[VideoVAE], latents: tuple[int, int]
) -> None:
    """Those of one block and of two, of Endora's of two and of four, give those of six."""
    with mock.patch.dict(type(deep).presets["tiny"], depth=6):
        state, clip = preset_bytes.__wrapped__(preset, 9, 128, vae=vae)
    model, (frames, channels) = deep.train(), latents
    assert state == 20 * sum(parameter.numel() for parameter in model.parameters())

    def step(batch: int) -> torch.Tensor:
        z, t = torch.zeros(batch, frames + 2, channels, 16, 16), torch.zeros(batch, dtype=torch.long)
        out = model(z, t, num_images=2)
        return sum(part.square().mean() for part in (out.eps, out.variance, *out.features))

    one, two = (peak_bytes([model], lambda batch=batch: step(batch)) for batch in (3, 4))
    assert clip == pytest.approx(two - one, rel=0.03)


CONDITIONS = {
    "data__frames": 9,
    "data__labels": "labels.csv",
    "train_dit__first_frame_prob": 0.5,
    "alignment__weight": 0.5,
}


@pytest.mark.parametrize("changes", [{"alignment__weight": 0}, CONDITIONS], ids=["plain", "conditions"])
def test_a_step_of_stage_2_counts_what_the_loops_own_allocates(
    changes: dict[str, Any], clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss, its labels, given frames and alignment are those of the loop; latents come from the cache."""
    options = {"vae__path": str(vae_folder), "cache__latents": "disk"} | changes
    stage = build_denoiser_stage(tiny.tiny_config(tmp_path, clips, **options))
    batch = stage.samples.collate([stage.samples[SampleKey(n, 0, n)] for n in range(4)])
    batch["needed"] = torch.ones(4, dtype=torch.bool)

    def step() -> torch.Tensor:
        noised, targets = stage.inputs.noised_latents(batch), None
        if stage.inputs.prior is not None:
            of_layer = (4, frames_to_latents(stage.config.data.frames), 4, stage.model.config.width)
            layers = [torch.rand(of_layer) for _ in stage.inputs.prior.distinct_layers]
            targets = stage.inputs.prior.pair_with_blocks(layers)
        return stage.loss(stage.model, noised, targets).total

    stage.model.train()
    step()  # fills the tables that are kept
    with LiveBytes([*stage.model.parameters(), *stage.model.buffers()]) as live:
        step().backward()

    seen, call = [], DenoisingLoss.__call__
    monkeypatch.setattr(DenoisingLoss, "__call__", lambda *parts: seen.append(parts[2]) or call(*parts))
    estimate = estimate_denoiser(stage.config, stage.model, stage.vae, stage.inputs.prior, 4)
    assert estimate.step == pytest.approx(live.peak, rel=0.01)
    assert len(seen) == 1
    assert (seen[0].labels is not None) == (seen[0].weights is not None) == (changes is CONDITIONS)


def test_only_the_largest_passing_part_counts() -> None:
    """Parts that are not the largest may grow up to it and change nothing."""
    parts = dict.fromkeys(("weights", "average", "optimiser", "frozen", "clips"), 2**20)
    passing = {"step": 2**30, "encoding": 2**29, "prior": 0, "evaluating": 0}
    total = MemoryEstimate(**parts, **passing).total
    assert MemoryEstimate(**parts, **passing | {"prior": 2**30, "evaluating": 2**30}).total == total
    assert MemoryEstimate(**parts, **passing | {"prior": 2**30 + 2**10}).total > total
    assert MemoryEstimate(**parts | {"frozen": 2**21}, **passing).total == total + 2**20


def measure(stage: str, folder: Path) -> tuple[int, int]:
    """Return the estimated and the measured bytes of the run that config.yaml in `folder` describes."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.measure_memory", stage, "config.yaml"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimate, measured = (int(line) for line in done.stdout.splitlines() if line.isdecimal())
    return estimate, measured


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_the_estimate_is_within_a_fifth_of_what_a_run_takes(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    """With enough clips at once that activations outweigh what libraries do in passing."""
    config = tiny.tiny_config(
        Path(),
        clips,
        vae__path=str(vae_folder),
        denoiser__overrides={},
        alignment__weight=0,
        train_vae__batch=8,
        train_vae__max_steps=2,
        train_vae__eval_every=100,
        train_dit__phases=[{"lr": 1e-4, "batch": 64}],
        train_dit__max_steps=2,
        train_dit__eval_every=100,
    )
    save_config(config, tmp_path / "config.yaml")
    estimate, measured = measure(stage, tmp_path)
    assert estimate == pytest.approx(measured, rel=0.2), (
        f"{estimate / 2**20:.0f} and {measured / 2**20:.0f} MiB"
    )
