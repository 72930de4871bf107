"""medsora.denoiser.embed, medsora.denoiser.model, medsora.sampling.pipeline: labels in the denoiser: no
parameter without them, one row each with them, guidance from one forward.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medsora.denoiser import MedSora
from medsora.denoiser.parameters import parameter_table
from medsora.errors import BadInput
from medsora.sampling.pipeline import guided
from medsora.sampling.prepared import PreparedDenoiser

T = [900, 300, 0]


@pytest.fixture
def model(small_model: Callable[..., MedSora]) -> MedSora:
    model = small_model(classes=3)
    with torch.no_grad():
        model.labels.weight.normal_()
    return model


def test_labels_cost_a_row_each_and_nothing_where_there_are_none(small_model: Callable[..., MedSora]) -> None:
    plain, labelled = small_model(), small_model(classes=3)
    assert labelled.state_dict().keys() - plain.state_dict().keys() == {"labels.weight"}
    width = plain.config.width
    assert parameter_table(labelled)["total"] - parameter_table(plain)["total"] == 4 * width
    assert "label embedding" not in parameter_table(plain)


@torch.no_grad()
def test_an_untrained_embedding_has_no_effect(small_model: Callable[..., MedSora]) -> None:
    model = small_model(classes=3)
    model.labels.weight.zero_()
    z, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([5, 700])
    assert torch.equal(model(z, t, labels=torch.tensor([0, 2])).eps, model(z, t).eps)


@torch.no_grad()
def test_labels_per_sample_and_per_latent(model: MedSora) -> None:
    z, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([500, 500])
    labels = torch.tensor([1, 3])
    eps = model(z, t, labels=labels).eps
    per_latent = model(z, t, labels=labels[:, None].repeat(1, 4)).eps
    torch.testing.assert_close(per_latent, eps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(z, t).eps[1], eps[1], atol=1e-5, rtol=1e-5)  # 3: no label
    assert not torch.allclose(eps[0], model(z, t).eps[0], atol=1e-3)
    with pytest.raises(BadInput, match=r"labels must be \(2,\) or \(2, 4\)"):
        model(z, t, labels=labels[:1])


@torch.no_grad()
def test_a_model_without_labels_refuses_them(small_model: Callable[..., MedSora]) -> None:
    with pytest.raises(BadInput, match="has no labels"):
        small_model()(torch.randn(1, 4, 4, 8, 8), torch.tensor([5]), labels=torch.tensor([0]))


@torch.no_grad()
@pytest.mark.parametrize("per_latent", [False, True])
def test_the_table_holds_every_label_at_every_timestep(model: MedSora, per_latent: bool) -> None:
    prepared = PreparedDenoiser(model, T, labels=[0, 2, 3])
    labels = torch.tensor([2, 3])
    if per_latent:
        labels = torch.tensor([[2, 2, 0, 3], [3, 3, 3, 3]])
    for timestep in T:
        z, t = torch.randn(2, 4, 4, 8, 8), torch.full((2, 4), timestep)
        t[:, 0] = 0  # a given latent
        torch.testing.assert_close(
            prepared(z, t, labels), model(z, t, labels=labels).eps, atol=1e-5, rtol=1e-5
        )
    assert prepared.fits(model, T, 0, False, [0, 2, 3])
    assert not prepared.fits(model, T, 0, False, [0, 3])


@torch.no_grad()
def test_guidance_goes_from_no_label_over_the_label_and_beyond(model: MedSora) -> None:
    z, t, labels = torch.randn(2, 4, 4, 8, 8), torch.tensor([500, 500]), torch.tensor([0, 1])
    sizes = []

    def denoise(z, t, labels):
        sizes.append(len(z))
        return model(z, t, labels=labels).eps

    with_label, without = model(z, t, labels=labels).eps, model(z, t).eps
    assert torch.equal(guided(denoise, z, t, labels, 3, 1.0), with_label)
    torch.testing.assert_close(
        guided(denoise, z, t, labels, 3, 2.5), without + 2.5 * (with_label - without), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(guided(denoise, z, t, labels, 3, 0.0), without, atol=1e-5, rtol=1e-5)
    assert torch.equal(guided(denoise, z, t, None, 3, 5.0), without)
    assert sizes == [2, 4, 2, 2]  # one forward each; 0 and 1 take one half alone
