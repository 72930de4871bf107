"""Video to targets: layers, Sampling(·) in space and along features, frame averages, what the skip saves."""

from __future__ import annotations

import pytest
import torch

from medsora.flow_prior import (
    DinoEncoder,
    FlowPrior,
    alignment_loss,
    build_estimator,
    flow_to_rgb,
    needed,
    selected_layers,
)
from medsora.flow_prior.prior import average_frames, sample
from tests.support.known_flow import CountingEstimator, PoolingEncoder, shifting_video

SHAPE = {"latent_frames": 4, "grid": (2, 3), "width": 5}


def counting_prior(layers=(0, 3), averaging="aligned"):
    return FlowPrior(CountingEstimator(), PoolingEncoder(), list(layers), averaging)


def random_video(clips: int = 2, frames: int = 17, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(clips, frames, 3, height, width) * 2 - 1


def test_layers_of_the_presets():
    assert selected_layers(6) == [0, 2, 4, 6, 8, 10]
    assert selected_layers(12) == list(range(12))
    assert selected_layers(24) == [layer for layer in range(12) for _ in range(2)]
    assert selected_layers(48) == [layer for layer in range(12) for _ in range(4)]
    assert selected_layers(4) == [0, 3, 6, 9]


def test_one_target_per_block_and_each_layer_computed_once():
    prior = counting_prior(selected_layers(24))
    targets = prior(random_video(), **SHAPE)
    assert [tuple(target.shape) for target in targets] == [(2, 4, 6, 5)] * 24
    assert all(targets[block] is targets[block + 1] for block in range(0, 24, 2))
    assert prior.encoder.requested_layers == [list(range(12))] * 2
    torch.testing.assert_close(targets[2], 2 * targets[0])


def test_blocks_may_ask_for_layers_in_any_order():
    targets = counting_prior([3, 0, 3])(random_video(), **SHAPE)
    torch.testing.assert_close(targets[0], 4 * targets[1])
    assert targets[0] is targets[2]


def test_distinct_targets_pair_with_the_blocks():
    prior, video = counting_prior([3, 0, 3]), random_video()
    of_layers = prior.distinct_targets(video, **SHAPE)
    assert len(of_layers) == 2
    for paired, direct in zip(prior.pair_with_blocks(of_layers), prior(video, **SHAPE), strict=True):
        assert torch.equal(paired, direct)


def test_a_clip_does_not_depend_on_its_batch():
    prior, video = counting_prior(), random_video(3)
    together = prior(video, **SHAPE)
    alone = prior(video[1:2], **SHAPE)
    for batch, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batch[1:2], single)


def test_known_flow_spares_the_estimation():
    prior = counting_prior()
    flow = torch.randn(2, 16, 2, 16, 24)
    given = prior(None, flow, **SHAPE)
    assert prior.estimator.calls == 0
    exact = FlowPrior(build_estimator("exact"), PoolingEncoder(), [0, 3])
    assert torch.equal(exact(None, flow, **SHAPE)[0], given[0])
    with pytest.raises(ValueError, match="neither a video nor its flow"):
        prior(None, None, **SHAPE)
    with pytest.raises(ValueError, match="'exact' needs the flow in the batch"):
        exact(random_video(), **SHAPE)


def test_tokens_lie_where_their_motion_is():
    flow = torch.zeros(1, 8, 2, 32, 48)
    flow[..., 0, 8:16, 32:48] = 1.0  # rightwards (red), in rows 1 and columns 4, 5 of 4 x 6 tokens
    prior = FlowPrior(CountingEstimator(), PoolingEncoder(patch=8), [0])
    (target,) = prior(None, flow, latent_frames=2, grid=(4, 6), width=3)
    expected = torch.zeros(4, 6)
    expected[1, 4:6] = 1
    torch.testing.assert_close(target[0, 0, :, 0].view(4, 6), expected)
    assert target[..., 1:].abs().max() == 0


def test_space_is_resized_as_a_grid():
    rows = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 8)
    tokens = sample(rows, (2, 4), 1).view(2, 4)
    torch.testing.assert_close(tokens, torch.tensor([[0.5] * 4, [2.5] * 4]))
    pattern = torch.randn(1, 1, 16, 16)
    halved = torch.nn.functional.avg_pool2d(pattern, 2).flatten()
    torch.testing.assert_close(sample(pattern, (8, 8), 1).flatten(), halved)
    as_a_row = torch.nn.functional.interpolate(pattern.flatten(2), size=64, mode="linear").flatten()
    assert (as_a_row - halved).abs().max() > 0.5


def test_features_are_interpolated_linearly_to_the_width():
    ramp = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 2, 2)
    torch.testing.assert_close(sample(ramp, (2, 2), 3)[0, 0], torch.tensor([0.5, 2.5, 4.5]))
    maps = torch.randn(1, 6, 2, 2)
    assert torch.equal(sample(maps, (2, 2), 6), maps.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("frames", "latents", "groups"),
    [
        (16, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]),
        (17, 5, [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]),
        (9, 3, [[0], [1, 2, 3, 4], [5, 6, 7, 8]]),
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (1, 1, [[0]]),
    ],
)
def test_a_latent_averages_the_flow_frames_that_it_covers(frames, latents, groups):
    values = torch.randn(frames, 3, 2)
    expected = torch.stack([values[group].mean(dim=0) for group in groups])
    torch.testing.assert_close(average_frames(values, latents), expected)


def test_aligned_targets_follow_time_and_uniform_ones_do_not():
    video = random_video(1)
    aligned = counting_prior()(video, **SHAPE)[0]
    uniform = counting_prior(averaging="uniform")(video, **SHAPE)[0]
    assert (aligned[:, 1:] - aligned[:, :-1]).abs().amax() > 0.01
    torch.testing.assert_close(uniform, aligned.mean(dim=1, keepdim=True).expand_as(aligned))


@pytest.mark.parametrize(("frames", "latents"), [(16, 5), (17, 4), (1, 2), (9, 1)])
def test_frames_that_cannot_be_shared_are_refused(frames, latents):
    with pytest.raises(ValueError, match=f"{frames} flow frames cannot be shared among {latents}"):
        average_frames(torch.zeros(frames, 2), latents)


def test_bad_settings():
    with pytest.raises(ValueError, match="layers 0 to 11, and not 12"):
        counting_prior([0, 12])
    with pytest.raises(ValueError, match="expected one of aligned, uniform"):
        counting_prior(averaging="mean")


@pytest.mark.parametrize(("timesteps", "count"), [([0, 199, 150, 999], 2), ([199, 200, 500, 999], 0)])
def test_targets_of_the_needed_samples_alone_are_enough(timesteps, count):
    prior, video, t = counting_prior(), random_video(4), torch.tensor(timesteps)
    weight = torch.randn(5, 5, requires_grad=True)
    tokens = [torch.randn(4, 4, 6, 5) for _ in prior.layers]
    features = [part @ weight for part in tokens]

    mask = needed(t)
    assert mask.sum() == count
    targets = prior(video[mask], **SHAPE) if count else None  # as `Stage2Inputs.alignment_targets` does
    skipped = alignment_loss(features, targets, t, needed=mask)
    (with_skip,) = torch.autograd.grad(skipped.loss, weight, retain_graph=True)

    full = alignment_loss(features, prior(video, **SHAPE), t)
    (without,) = torch.autograd.grad(full.loss, weight)
    torch.testing.assert_close(skipped.loss, full.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(with_skip, without, atol=1e-6, rtol=0)


def test_the_pipeline_with_real_parts():
    prior = FlowPrior.build("dis", "vit_tiny_patch16_224", depth=4, dino_weights="random")
    assert prior.layers == [0, 3, 6, 9]
    assert prior.untrained
    video = torch.cat([shifting_video(9, 64, 64, 2, 0), shifting_video(9, 64, 64, 0, -2)])
    targets = prior(video, latent_frames=2, grid=(4, 4), width=192)
    assert [tuple(target.shape) for target in targets] == [(2, 2, 16, 192)] * 4
    assert all(torch.isfinite(target).all() and not target.requires_grad for target in targets)

    # The encoder saw Eq. 13's pictures of this flow, averaged over the four frames of each latent.
    pictures = flow_to_rgb(prior.estimator(video))[1]
    maps = prior.encoder(pictures, [3])[0]
    expected = maps[4:].mean(dim=0).flatten(1).T
    torch.testing.assert_close(targets[1][1, 1], expected, atol=1e-5, rtol=1e-5)
    assert (targets[1][0] - targets[1][1]).abs().max() > 0.01


def test_a_still_video_gives_finite_targets_and_no_gradient_trouble():
    prior = FlowPrior(build_estimator("dis"), DinoEncoder("vit_tiny_patch16_224", "random"), [0])
    still = torch.zeros(1, 9, 3, 32, 32)
    targets = prior(still, latent_frames=2, grid=(2, 2), width=8)
    features = torch.randn(1, 2, 4, 8, requires_grad=True)
    alignment_loss([features], targets, torch.tensor([0])).loss.backward()
    assert torch.isfinite(features.grad).all()
