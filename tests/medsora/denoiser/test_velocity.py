"""The velocity as what the last layer gives: the noise that follows from it, in and out of the model."""

from __future__ import annotations

import pytest
import torch

from medsora.denoiser import MedSora
from medsora.denoiser.velocity import noise_from_velocity
from medsora.diffusion import GaussianDiffusion


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_the_true_velocity_gives_the_true_noise(shape: tuple[int, ...]) -> None:
    diffusion = GaussianDiffusion()
    z_0, noise = (torch.randn(3, 2, 4, 2, 2, dtype=torch.float64) for _ in range(2))
    t = torch.randint(1000, shape)
    alpha_bar = diffusion.alpha_bar[t].reshape(*shape, *[1] * (5 - len(shape)))
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z_0
    torch.testing.assert_close(noise_from_velocity(velocity, diffusion.add_noise(z_0, noise, t), t), noise)


def test_half_precision_keeps_noise_and_latents_apart() -> None:
    z, velocity, t = torch.randn(1, 1, 4, 2, 2), torch.randn(1, 1, 4, 2, 2), torch.tensor([990])
    found = noise_from_velocity(velocity.bfloat16(), z.bfloat16(), t)
    assert found.dtype == torch.float32
    assert not torch.equal(found, noise_from_velocity(-velocity.bfloat16(), z.bfloat16(), t))


@torch.no_grad()
def test_an_untrained_model_takes_high_noise_for_what_it_is() -> None:
    """Its last layer gives 0: as noise that is wrong by all of ε, as velocity hardly at all at high noise."""
    z, t = torch.randn(2, 4, 16, 4, 4), torch.tensor([999, 0])
    eps = MedSora.from_preset("tiny", depth=1, prediction="velocity").eval()(z, t).eps
    torch.testing.assert_close(eps[0], z[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(eps[1], 0.01 * z[1], rtol=1e-4, atol=0)  # √(1 - ᾱ_0) = √β_0
    assert not MedSora.from_preset("tiny", depth=1).eval()(z, t).eps.any()


def test_the_choice_is_saved_with_the_model(tmp_path) -> None:
    MedSora.from_preset("tiny", depth=1, prediction="velocity").save_pretrained(tmp_path)
    assert MedSora.from_pretrained(tmp_path).config.prediction == "velocity"
