"""medsora.baselines.endora.model, medsora.denoiser.base: sizes, cost, equality with a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from medsora import MedSora
from medsora.baselines.endora import Endora
from medsora.config.presets import ENDORA_PRESETS
from medsora.denoiser.velocity import noise_from_velocity
from medsora.errors import BadInput
from medsora.sampling.prepared import PreparedDenoiser
from tests.support.awake import awake
from tests.support.naive_endora import naive_endora, published_name

SMALL = {"width": 24, "depth": 4, "heads": 3}


def small(**settings: Any) -> Endora:
    torch.manual_seed(0)
    return awake(Endora(**SMALL | settings).double().eval(), std=0.3)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters", "gflops", "published_gflops"),
    [("XL", 673_681_568, 919.1, 936.5), ("B", 129_547_040, 175.6, 179.0)],
)
def test_counts_and_cost_are_the_published_ones(
    preset: str, parameters: int, gflops: float, published_gflops: float
) -> None:
    """The published code repeats a sample's time embedding for all its sequences before adaLN's product."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = Endora.from_preset(preset)
        assert count(model) == parameters
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 16, 4, 16, 16), torch.zeros(1, dtype=torch.long))
        with torch.enable_grad(), FlopCounterMode(display=False) as trained:
            model(torch.empty(1, 16, 4, 16, 16), torch.zeros(1, dtype=torch.long)).eps.sum().backward()
    assert 2.98 < trained.get_total_flops() / counter.get_total_flops() < 3.05  # attention's backward too
    found, size = counter.get_total_flops(), ENDORA_PRESETS[preset]
    sequences = (16 + 64) // 2 * size["depth"]  # frames in a spatial block, places in a temporal one
    repeated = (sequences - size["depth"]) * 2 * 6 * size["width"] ** 2
    assert found / 1e9 == pytest.approx(gflops, abs=0.05)
    assert (found + repeated) / 1e9 == pytest.approx(published_gflops, abs=0.1)


def test_tiny_has_as_many_parameters_as_medsora_tiny() -> None:
    for channels in (4, 16):
        endora, medsora = (kind.from_preset("tiny", in_channels=channels) for kind in (Endora, MedSora))
        assert count(endora) == pytest.approx(count(medsora), rel=0.03)


def test_a_model_shows_its_preset() -> None:
    with torch.device("meta"):
        assert [Endora.from_preset(name).preset for name in ENDORA_PRESETS] == list(ENDORA_PRESETS)
        assert Endora.from_preset("B", depth=14).preset is None
        assert Endora.from_preset("B", layout="separate").preset is None


@pytest.mark.parametrize(
    ("layout", "temporal"), [("interlaced", (1, 3)), ("separate", (2, 3))], ids=["interlaced", "separate"]
)
@pytest.mark.parametrize("num_images", [0, 2])
@torch.no_grad()
def test_equals_a_plain_recreation(layout: str, temporal: tuple[int, ...], num_images: int) -> None:
    model = small(layout=layout, classes=3)
    z = torch.randn(2, 3 + num_images, 4, 4, 6, dtype=torch.float64)
    t, labels = torch.tensor([7, 930]), torch.tensor([1, 3])
    weights = {published_name(name): value for name, value in model.state_dict().items()}
    eps, variance, features = naive_endora(
        weights, z, t, heads=3, num_images=num_images, labels=labels, temporal=temporal
    )
    out = model(z, t, num_images, labels=labels)
    for ours, plain in [(out.eps, eps), (out.variance, variance), *zip(out.features, features, strict=True)]:
        torch.testing.assert_close(ours, plain, atol=1e-10, rtol=1e-10)
    assert len(out.features) == model.num_features == 2


@torch.no_grad()
def test_joint_images_influence_neither_the_clip_nor_one_another() -> None:
    model, t = small(), torch.tensor([30, 400])
    z = torch.randn(2, 6, 4, 4, 4, dtype=torch.float64)
    out = model(z, t, num_images=2)
    others = z.clone()
    others[:, 5] = torch.randn(2, 4, 4, 4)
    other = model(others, t, num_images=2)
    assert torch.equal(out.eps[:, :5], other.eps[:, :5])
    assert not torch.equal(out.eps[:, 5], other.eps[:, 5])
    torch.testing.assert_close(out.eps[:, :4], model(z[:, :4], t).eps)
    for ours, theirs in zip(out.features, other.features, strict=True):
        assert ours.shape[1] == 4
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(out.image_features, other.image_features, strict=True):
        assert torch.equal(ours[:, 0], theirs[:, 0])
        assert not torch.equal(ours[:, 1], theirs[:, 1])


def test_untrained_model_predicts_zero_and_every_weight_can_learn() -> None:
    z, t = torch.randn(2, 3, 4, 4, 4), torch.tensor([1, 900])
    fresh = Endora(**SMALL)(z, t)
    assert not fresh.eps.any()
    assert not fresh.variance.any()
    model = small(classes=2)
    out = model(z.double(), t, num_images=1, labels=torch.tensor([[0, 1, 2]] * 2))
    (out.eps.square().sum() + out.variance.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointed_gradients_are_the_same() -> None:
    z, t = torch.randn(1, 3, 4, 4, 4, dtype=torch.float64), torch.tensor([5])
    gradients = []
    for checkpointing in (False, True):
        model = small()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(z, t, num_images=1).eps.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_a_timestep_per_frame_is_that_frame_s_alone() -> None:
    model = small()
    z, t = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64), torch.tensor([20, 500])
    of_frames = t[:, None].expand(-1, 3).clone()
    torch.testing.assert_close(model(z, of_frames).eps, model(z, t).eps, atol=1e-12, rtol=1e-12)
    of_frames[:, 0] = 0
    assert not torch.allclose(model(z, of_frames).eps, model(z, t).eps)


@torch.no_grad()
def test_tabulated_adaln_gives_the_same_noise() -> None:
    model = small(classes=2)
    z, t, labels = (
        torch.randn(2, 3, 4, 4, 4, dtype=torch.float64),
        torch.tensor([40, 40]),
        torch.tensor([0, 2]),
    )
    prepared = PreparedDenoiser(model, [900, 40], labels=[0, 2])
    torch.testing.assert_close(prepared(z, t, labels), model(z, t, labels=labels).eps, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_velocity_becomes_noise() -> None:
    z, t = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64), torch.tensor([3, 700])
    velocity = small()(z, t).eps
    torch.testing.assert_close(small(prediction="velocity")(z, t).eps, noise_from_velocity(velocity, z, t))


@torch.no_grad()
def test_bfloat16_is_near() -> None:
    model = small().float()
    z, t = torch.randn(1, 4, 4, 4, 4), torch.tensor([500])
    with torch.autocast("cpu", torch.bfloat16):
        near = model(z, t, num_images=1).eps
    exact = model(z, t, num_images=1).eps
    assert (near - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Endora(width=24, heads=5), "divisible"),
        (lambda: Endora(width=24, heads=3, depth=3), "even"),
        (lambda: Endora(**SMALL, layout="woven"), "interlaced, separate"),
        (lambda: Endora(**SMALL, prediction="x"), "noise, velocity"),
        (lambda: Endora.from_preset("M"), "tiny, S, B, L, XL"),
        (lambda: Endora.from_preset("tiny", mixing="mixed"), "no setting 'mixing'"),
        (lambda: small()(torch.zeros(1, 2, 5, 4, 4), torch.zeros(1)), "latents must be"),
    ],
)
def test_bad_input_is_one_sentence(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        build()
