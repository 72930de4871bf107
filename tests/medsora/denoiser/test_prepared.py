"""A denoiser made ready for a run: the same answers from tables, made anew when the weights change."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medsora.denoiser import MedSora
from medsora.denoiser.prepared import PreparedDenoiser

TIMESTEPS = [999, 500, 3]


@torch.no_grad()
def test_every_timestep_gives_what_the_model_gives(small_model: Callable[..., MedSora]) -> None:
    for mixing, images in (("isolated", 0), ("mixed", 2)):
        model = small_model(mixing=mixing)
        prepared = PreparedDenoiser(model, TIMESTEPS, num_images=images)
        for timestep in TIMESTEPS:
            z, t = torch.randn(2, 4, 4, 8, 8), torch.full((2,), timestep)
            torch.testing.assert_close(
                prepared(z, t), model(z, t, num_images=images).eps, atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
def test_adaln_is_not_computed_again(small_model: Callable[..., MedSora], monkeypatch) -> None:
    model = small_model()
    prepared = PreparedDenoiser(model, TIMESTEPS)
    monkeypatch.setattr(MedSora, "modulation", None)
    prepared(torch.randn(1, 4, 4, 8, 8), torch.tensor([500]))


@torch.no_grad()
def test_it_fits_until_weights_or_timesteps_change(small_model: Callable[..., MedSora]) -> None:
    model = small_model()
    prepared = PreparedDenoiser(model, TIMESTEPS, record=False)
    assert prepared.fits(model, TIMESTEPS, 0, False)
    assert not prepared.fits(model, TIMESTEPS[:2], 0, False)
    assert not prepared.fits(model, TIMESTEPS, 1, False)
    assert not prepared.fits(small_model(), TIMESTEPS, 0, False)
    model.blocks[0].modulation.bias.add_(1)
    assert not prepared.fits(model, TIMESTEPS, 0, False)


def test_there_are_no_graphs_on_a_cpu(small_model: Callable[..., MedSora]) -> None:
    assert not PreparedDenoiser(small_model(), TIMESTEPS, record=True).record
