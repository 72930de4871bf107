"""medsora.flow_prior.raft, medsora.flow_prior.weights: RAFT: known shifts with the real weights, small
frames, both kinds of names, strict loading.
"""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large

from medsora.flow_prior import RaftEstimator, estimate_flow
from medsora.flow_prior.raft import to_torchvision_names, working_size
from medsora.flow_prior.weights import read_weights
from tests.support.known_flow import shifting_video

INSIDE = (..., slice(16, -16), slice(16, -16))


@pytest.fixture(scope="module")
def raft_small(raft_small_weights):
    return RaftEstimator("raft_small", raft_small_weights)


def test_finds_a_known_shift(raft_small):
    flow = estimate_flow(shifting_video(2, 128, 128, 6, 4), raft_small)
    assert flow.shape == (1, 1, 2, 128, 128)
    mean = flow[INSIDE].mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.tensor([6.0, 4.0]), atol=0.15, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (60, 100)])
def test_small_frames_give_flow_in_their_own_pixels(raft_small, height, width):
    flow = estimate_flow(shifting_video(2, height, width, 3, -2), raft_small)
    assert flow.shape == (1, 1, 2, height, width)
    mean = flow[INSIDE].mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.tensor([3.0, -2.0]), atol=0.15, rtol=0)


def test_enlarged_frames_scale_each_axis_by_its_own_factor(raft_small, monkeypatch):
    monkeypatch.setattr(raft_small.network, "forward", lambda first, _: [torch.ones_like(first[:, :2])])
    flow = estimate_flow(torch.zeros(1, 2, 3, 20, 21), raft_small)  # RAFT sees 128 x 136
    torch.testing.assert_close(flow[:, :, 0], torch.full((1, 1, 20, 21), 21 / 136))
    torch.testing.assert_close(flow[:, :, 1], torch.full((1, 1, 20, 21), 20 / 128))


def test_the_network_is_fed_the_range_it_was_trained_on(raft_small):
    seen = []
    hook = raft_small.network.register_forward_pre_hook(lambda _, frames: seen.extend(frames))
    video = shifting_video(2, 128, 128, 1, 1)
    estimate_flow(video, raft_small)
    hook.remove()
    assert torch.equal(seen[0], video[:, 0])
    assert torch.equal(seen[1], video[:, 1])
    assert seen[0].min() < -0.5 < 0.5 < seen[0].max()


def test_sub_batches_change_nothing(raft_small, raft_small_weights):
    video = torch.cat([shifting_video(3, 128, 128, 2, 1), shifting_video(3, 128, 128, -1, 3)])
    one_by_one = RaftEstimator("raft_small", raft_small_weights, pairs_at_once=1)
    torch.testing.assert_close(raft_small(video), one_by_one(video), atol=2e-3, rtol=0)


def test_frozen_whatever_its_owner_does(raft_small):
    torch.nn.Sequential(raft_small).train()
    assert not any(module.training for module in raft_small.modules())
    assert not any(parameter.requires_grad for parameter in raft_small.parameters())


def test_torchvision_names_and_princeton_names_are_the_same_network(raft_small, tmp_path):
    save_file(raft_small.network.state_dict(), tmp_path / "small.safetensors")
    loaded = RaftEstimator("raft_small", tmp_path / "small.safetensors")
    for name, tensor in raft_small.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def princeton_large_names() -> list[str]:
    """The names in princeton-vl's RAFT (large), without `module.`; cnet has batch norms, fnet none."""
    blocks = [f"layer{layer}.{block}" for layer in (1, 2, 3) for block in (0, 1)]
    shortcuts = ["layer2.0", "layer3.0"]
    encoder = ["conv1", "conv2", *(f"{block}.conv{k}" for block in blocks for k in (1, 2))]
    encoder += [f"{block}.downsample.0" for block in shortcuts]
    norms = ["norm1", *(f"{block}.norm{k}" for block in blocks for k in (1, 2))]
    norms += [f"{block}.{name}" for block in shortcuts for name in ("norm3", "downsample.1")]
    update = [f"encoder.{name}" for name in ("convc1", "convc2", "convf1", "convf2", "conv")]
    update += [f"gru.conv{gate}{k}" for k in (1, 2) for gate in "zrq"]
    update += ["flow_head.conv1", "flow_head.conv2", "mask.0", "mask.2"]
    weighted = [f"{part}.{name}" for part in ("fnet", "cnet") for name in encoder]
    weighted += [f"update_block.{name}" for name in update]
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{kind}" for name in weighted for kind in ("weight", "bias")] + [
        f"cnet.{name}.{kind}" for name in norms for kind in statistics
    ]


def test_every_princeton_name_of_the_large_model_has_its_place():
    state = {f"module.{name}": torch.zeros(1) for name in princeton_large_names()}
    assert set(to_torchvision_names(state)) == set(raft_large(weights=None).state_dict())


def test_a_shortcut_norm_that_differs_from_its_second_name_is_not_dropped():
    state = {f"module.{name}": torch.zeros(1) for name in princeton_large_names()}
    state["module.cnet.layer2.0.norm3.weight"] = torch.ones(1)
    assert set(to_torchvision_names(state)) - set(raft_large(weights=None).state_dict())


def test_small_weights_are_refused_by_the_large_model(raft_small_weights):
    with pytest.raises(ValueError, match=r"raft-small.pth does not fit torchvision's raft_large: .* differ"):
        RaftEstimator("raft_large", raft_small_weights)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_princeton_weights_are_loaded_strictly(raft_small_weights, tmp_path, change):
    state = read_weights(raft_small_weights)
    name = "module.fnet.conv1.weight"
    if change == "missing":
        state.pop(name)
    elif change == "extra":
        state["module.fnet.conv9.weight"] = torch.zeros(1)
    else:
        state[name] = state[name][:, :, :5]
    torch.save(state, tmp_path / "changed.pth")
    named = "conv9" if change == "extra" else "feature_encoder.convnormrelu.0.weight"
    with pytest.raises(ValueError, match=rf"changed.pth does not fit .*{named}"):
        RaftEstimator("raft_small", tmp_path / "changed.pth")


def test_offline_without_weights_both_ways_are_named(monkeypatch, tmp_path):
    def no_network(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(OSError, match=r"connect to the network once .* a local file \(flow.weights\)"):
        RaftEstimator("raft_small")


def test_bad_files_and_names(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights"):
        RaftEstimator("raft_small", tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match=r"none.pth does not exist"):
        RaftEstimator("raft_small", tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"expected one of raft_large, raft_small"):
        RaftEstimator("raft_medium")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (128, 128)),
        ((64, 64), (128, 128)),
        ((64, 96), (128, 192)),
        ((130, 256), (136, 256)),
        ((16, 16), (128, 128)),
    ],
)
def test_working_size(size, expected):
    assert working_size(*size) == expected
