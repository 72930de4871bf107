"""Timesteps and noise that belong to a sample's number."""

from __future__ import annotations

import pytest
import torch

from medsora.training.randomness import normal_for, timestep_for


@pytest.mark.parametrize("seed", [0, 7])
def test_timesteps_are_uniform_and_every_batch_covers_their_range(seed: int) -> None:
    timesteps = torch.tensor([timestep_for(1000, seed, sample) for sample in range(8000)])
    counts = torch.bincount(timesteps, minlength=1000)
    assert counts.shape == (1000,)
    assert (counts - 8).abs().max() <= 2
    gaps = timesteps.view(-1, 8).sort(dim=1).values.diff(dim=1)
    assert gaps.max() < 350  # 8 independent draws leave a wider gap in more than half of the batches


def test_timesteps_of_a_logit_mean_have_its_normal_distribution() -> None:
    timesteps = torch.tensor([timestep_for(1000, 0, sample, -0.6) for sample in range(8000)])
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    logits = torch.logit((timesteps + 0.5) / 1000)
    assert logits.mean() == pytest.approx(-0.6, abs=0.01)
    assert logits.std() == pytest.approx(1, abs=0.01)


def test_timesteps_depend_on_seed_and_number_alone() -> None:
    first = [timestep_for(1000, 0, sample) for sample in range(20)]
    assert first == [timestep_for(1000, 0, sample) for sample in range(20)]
    assert first != [timestep_for(1000, 1, sample) for sample in range(20)]


def test_noise_belongs_to_a_purpose_and_a_number() -> None:
    noise = normal_for((64,), 0, "noise", 5)
    assert torch.equal(noise, normal_for((64,), 0, "noise", 5))
    for other in (normal_for((64,), 1, "noise", 5), normal_for((64,), 0, "posterior", 5)):
        assert not torch.equal(noise, other)
