"""medsora.vae.model, medsora.vae.compensation, medsora.vae.shapes: the wrapped VAE: sizes, identity with its
base before training, causality, scale, and what learns.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX

from medsora.vae import FrequencyCompensatedVAE, check_video_shape, frames_to_latents, measure_scaling_factor
from medsora.vae.compensation import (
    CausalCompensation,
    SpatialCompensation,
    StandardCompensation,
    compensation_modules,
)
from tests.vae.conftest import TINY, random_video


@pytest.mark.parametrize(
    ("frames", "side", "latents"),
    [(1, 64, 1), (8, 96, 2), (9, 64, 3), (16, 64, 4), (17, 48, 5), (32, 32, 8), (33, 16, 9), (8, 128, 2)],
)
@torch.no_grad()
def test_clips_come_back_in_their_own_shape(vae, frames: int, side: int, latents: int) -> None:
    video = random_video(frames, side)
    z = vae.encode(video)
    assert z.shape == (1, latents, vae.latent_channels, side // 8, side // 8)
    assert frames_to_latents(frames) == latents
    decoded = vae.decode(z)
    assert decoded.shape == video.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("frames", [1, 8, 9, 16, 17])
@torch.no_grad()
def test_before_training_it_equals_its_base_bit_for_bit(vae, base, frames: int) -> None:
    video = random_video(frames)
    vae.train()  # unclamped, as the base is
    mean, logvar = vae.encode_moments(video)
    posterior = base.encode(video.transpose(1, 2)).latent_dist
    assert torch.equal(mean.transpose(1, 2), posterior.mean)
    assert torch.equal(logvar.transpose(1, 2), posterior.logvar)
    z = vae.scale(mean)
    expected = base.decode(vae.unscale(z).transpose(1, 2)).sample
    assert torch.equal(vae.decode(z).transpose(1, 2), expected)


def test_compensation_sits_where_the_paper_puts_it(vae) -> None:
    modules = {name: type(module) for name, module in compensation_modules(vae)}
    encoder = {f"base.encoder.down_blocks.{i}.resnets.1": SpatialCompensation for i in range(3)}
    of_kind = {"causal": CausalCompensation, "standard": StandardCompensation}[vae.config.compensation_kind]
    decoder = {f"base.decoder.up_blocks.{i}.resnets.0.compensation": of_kind for i in range(4)}
    assert modules == encoder | decoder


def test_a_deeper_decoder_is_compensated_in_its_middle() -> None:
    deeper = FrequencyCompensatedVAE.from_base(TINY | {"layers_per_block": 3})
    modules = [name for name, _ in compensation_modules(deeper) if "up_blocks.2." in name]
    assert modules == ["base.decoder.up_blocks.2.resnets.1.compensation"]


def test_the_base_keeps_its_names_and_values(vae, base) -> None:
    ours, theirs = vae.base_state_dict(), base.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_compensation_learns_when_the_base_is_frozen(trained) -> None:
    learning = trained.trainable_parameters("compensation")
    out = trained.train()(random_video(8))
    (out.reconstruction.square().mean() + out.mean.square().mean()).backward()
    compensation = set(map(id, trained.compensation_parameters()))
    assert {id(p) for p in learning} == compensation
    for parameter in trained.parameters():
        assert (parameter.grad is not None) == (id(parameter) in compensation)
    assert all(parameter.grad.abs().sum() > 0 for parameter in learning)


def test_training_the_decoder_leaves_the_latents(vae) -> None:
    video = random_video(8)
    before = vae.encode(video)
    learning = vae.trainable_parameters("decoder")
    out = vae.train()(video)
    out.reconstruction.square().mean().backward()
    decoder = [parameter for name, parameter in vae.named_parameters() if "decoder." in name]
    assert set(map(id, learning)) == set(map(id, decoder))
    assert all((p.grad is not None) == (id(p) in set(map(id, decoder))) for p in vae.parameters())
    with torch.no_grad():
        for parameter in learning:
            parameter -= parameter.grad
    assert torch.equal(vae.eval().encode(video), before)


def test_train_all_thaws_everything(vae) -> None:
    vae.freeze_base()
    assert len(vae.trainable_parameters("all")) == len(list(vae.parameters()))
    assert all(parameter.requires_grad for parameter in vae.parameters())


@torch.no_grad()
def test_compensation_that_learnt_changes_both_directions(trained, base) -> None:
    video = random_video(16)
    mean, _ = trained.encode_moments(video)
    assert not torch.allclose(mean.transpose(1, 2), base.encode(video.transpose(1, 2)).latent_dist.mean)
    without = base.decode(mean.transpose(1, 2)).sample.transpose(1, 2).clamp(-1, 1)
    assert not torch.allclose(trained.decode(trained.scale(mean)), without)


@pytest.mark.parametrize(("frames", "first_frames", "first_latents"), [(16, 8, 2), (17, 9, 3)])
@torch.no_grad()
def test_later_frames_leave_earlier_chunks_alone(trained, frames, first_frames, first_latents) -> None:
    video = random_video(frames)
    other = video.clone()
    other[:, first_frames:] = random_video(frames)[:, first_frames:]
    (z, _), (changed, _) = trained.encode_moments(video), trained.encode_moments(other)
    assert torch.equal(z[:, :first_latents], changed[:, :first_latents])
    assert not torch.allclose(z[:, first_latents:], changed[:, first_latents:])
    pixels, changed_pixels = trained.decode(z), trained.decode(changed)
    assert torch.equal(pixels[:, :first_frames], changed_pixels[:, :first_frames])


@torch.no_grad()
def test_the_first_four_of_8k_frames_differ_with_standard_compensation_alone(trained) -> None:
    """A causal decoder has no past that tells them apart; zeros at the chunk's ends do (docs/fidelity.md)."""
    even, odd = (trained.decode(torch.randn(1, latents, 16, 4, 4)) for latents in (4, 5))
    first = even[:, :4]
    if trained.config.compensation_kind == "causal":
        assert torch.equal(first[:, 1:], first[:, :1].expand(-1, 3, -1, -1, -1))
    else:
        assert all((first[:, k] - first[:, k + 1]).abs().max() > 1e-4 for k in range(3))
    assert not torch.allclose(even[:, 4], even[:, 5])
    assert all(not torch.allclose(odd[:, k], odd[:, k + 1]) for k in range(16))


@pytest.mark.parametrize("latents", [6, 7])
@torch.no_grad()
def test_decoding_the_first_chunks_gives_the_first_frames(trained, latents: int) -> None:
    z = torch.randn(1, latents, 16, 4, 4)
    whole = trained.decode(z)
    for chunks in (1, 2):
        begin = trained.decode(z[:, : latents % 2 + 2 * chunks])
        assert torch.equal(begin, whole[:, : begin.shape[1]])


@torch.no_grad()
def test_the_causal_compensation_looks_back_across_chunks_and_never_ahead() -> None:
    module = CausalCompensation(8, norm_groups=4)
    for parameter in module.parameters():
        parameter.normal_(std=0.2)
    hidden = torch.randn(1, 8, 6, 4, 4)
    whole, _ = module(hidden)
    first, cache = module(hidden[:, :, :3])
    second, _ = module(hidden[:, :, 3:], cache)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)
    ahead = hidden.clone()
    ahead[:, :, 3] += 1
    assert torch.equal(module(ahead)[0][:, :, :3], whole[:, :, :3])


@torch.no_grad()
def test_the_standard_compensation_pads_with_zeros_and_keeps_no_cache() -> None:
    module = StandardCompensation(8)
    for parameter in module.parameters():
        parameter.normal_(std=0.2)
    hidden = torch.randn(1, 8, 4, 4, 4)
    compensated, cache = module(hidden, {"left": hidden})
    assert cache == {}
    assert torch.equal(compensated, module(hidden)[0])
    framed = F.pad(hidden, (1, 1, 1, 1, 1, 1))
    inner = F.silu(F.conv3d(framed, module.conv_in.weight, module.conv_in.bias))
    outer = F.conv3d(F.pad(inner, (1, 1, 1, 1, 1, 1)), module.conv_out.weight, module.conv_out.bias)
    torch.testing.assert_close(compensated, hidden + outer)


@torch.no_grad()
def test_the_spatial_compensation_sees_each_frame_alone() -> None:
    module = SpatialCompensation(8, norm_groups=4)
    for parameter in module.parameters():
        parameter.normal_(std=0.2)
    hidden = torch.randn(2, 8, 3, 4, 4)
    alone = torch.cat([module(hidden[:, :, i : i + 1])[0] for i in range(3)], dim=2)
    torch.testing.assert_close(module(hidden)[0], alone)


def test_gradient_checkpointing_changes_no_gradient(trained) -> None:
    video = random_video(9)
    plain = copy.deepcopy(trained).train()
    trained.train().enable_gradient_checkpointing()
    assert trained.is_gradient_checkpointing
    for model in (plain, trained):
        model(video, sample=False).reconstruction.square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@torch.no_grad()
def test_sliced_videos_are_the_same(trained) -> None:
    video = random_video(9, batch=2)
    whole = trained.decode(trained.encode(video))
    trained.base.enable_slicing()
    torch.testing.assert_close(trained.decode(trained.encode(video)), whole)


@torch.no_grad()
def test_forward_draws_from_the_posterior(vae) -> None:
    video = random_video(8)
    out = vae(video, generator=torch.Generator().manual_seed(1))
    again = vae(video, generator=torch.Generator().manual_seed(1))
    mode = vae(video, sample=False)
    assert torch.equal(out.reconstruction, again.reconstruction)
    assert not torch.equal(out.reconstruction, mode.reconstruction)
    z = vae.sample_latents(out.mean, out.logvar, torch.Generator().manual_seed(1))
    torch.testing.assert_close(vae.decode(z), out.reconstruction)
    noise = torch.ones_like(out.mean)
    drawn = vae.sample_latents(out.mean, out.logvar, noise=noise)
    torch.testing.assert_close(vae.unscale(drawn), out.mean + (0.5 * out.logvar).exp())


@torch.no_grad()
def test_one_generator_per_video_makes_the_batch_irrelevant(vae) -> None:
    video = random_video(8, batch=3)
    together = vae.encode(video, sample=True, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = vae.encode(video[2:], sample=True, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_measured_factor_gives_unit_deviation_and_is_what_scale_uses(vae) -> None:
    clips = [random_video(8, batch=2) for _ in range(3)]
    vae.set_scaling_factor(measure_scaling_factor(vae, clips))
    drawn = [vae.encode(clip, sample=True, generator=torch.Generator().manual_seed(0)) for clip in clips]
    assert torch.cat(drawn).std().item() == pytest.approx(1, abs=0.05)
    assert vae.config.scaling_factor == vae.scaling_factor
    z = torch.randn(1, 2, 16, 4, 4)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)
    torch.testing.assert_close(vae.scale(z), z * vae.scaling_factor)


def test_measuring_nothing_is_refused(vae) -> None:
    with pytest.raises(ValueError, match="no clips"):
        measure_scaling_factor(vae, [])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 64, 64), "valid counts are 1 and 8"),
        ((12, 64, 64), "valid counts are 9 and 16"),
        ((0, 64, 64), "valid counts are 1 and 8"),
        ((16, 100, 64), "height 100.*96 and 112"),
        ((16, 64, 8), "width 8.*size is 16"),
    ],
)
def test_bad_sizes_name_the_next_good_ones(shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_video_shape(*shape)


def test_bad_tensors_are_refused(vae) -> None:
    with pytest.raises(ValueError, match="valid counts are 9 and 16"):
        vae.encode(random_video(10))
    with pytest.raises(ValueError, match=r"expected \(B, F, 3, H, W\)"):
        vae.encode(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match=r"expected \(B, n, 16, h, w\)"):
        vae.decode(torch.zeros(1, 2, 4, 8, 8))
    with pytest.raises(ValueError, match="neither 'compensation', 'decoder' nor 'all'"):
        vae.trainable_parameters("some")
    with pytest.raises(ValueError, match="'both' but must be one of causal, standard"):
        FrequencyCompensatedVAE.from_base(TINY, compensation_kind="both")
    with pytest.raises(ValueError, match="without any; choose 'decoder' or 'all'"):
        FrequencyCompensatedVAE.from_base(TINY, compensation=False).trainable_parameters("compensation")


def test_without_compensation_it_is_the_bare_base() -> None:
    bare = FrequencyCompensatedVAE.from_base(TINY, compensation=False)
    assert set(bare.base.state_dict()) == set(AutoencoderKLCogVideoX(**TINY).state_dict())
    assert not bare.compensation_parameters()
