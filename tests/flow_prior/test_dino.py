"""The frozen encoder: normalisation, grids, chosen layers, strict weights, and a word if there are none."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from medsora.flow_prior import DinoEncoder

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def encoder():
    return DinoEncoder(TINY, "random")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub: neither the network nor a cache (the constants are read when the hub's library is imported)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty-cache"))


def shapes_on_disk(name, path):
    """Write a file with the names and shapes of a timm model that takes almost no space."""
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, path)


@pytest.mark.parametrize("name", [TINY, "deit_tiny_patch16_224"])
def test_pictures_are_normalised_by_the_models_own_statistics(name):
    encoder = DinoEncoder(name, "random")
    config = encoder.network.pretrained_cfg
    seen = []
    encoder.network.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.rand(2, 3, 32, 32)
    encoder(pictures, [0])
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(seen[0], (pictures - mean) / std)


def test_the_statistics_of_the_two_models_differ():
    assert timm.get_pretrained_cfg(TINY).mean != timm.get_pretrained_cfg("deit_tiny_patch16_224").mean
    assert timm.get_pretrained_cfg("vit_base_patch8_224.dino").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 64), (4, 4)), ((32, 96), (2, 6)), ((40, 72), (3, 5)), ((8, 8), (1, 1))]
)
def test_any_size_gives_its_own_grid(encoder, size, grid):
    maps = encoder(torch.rand(1, 3, *size), [0, 5])
    assert [tuple(part.shape) for part in maps] == [(1, 192, *grid)] * 2


def test_equals_timm_at_the_models_own_size(encoder):
    plain = timm.create_model(TINY, num_classes=0).eval()
    plain.load_state_dict(encoder.network.state_dict())
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain.forward_intermediates(
            (pictures - 0.5) / 0.5, indices=[3, 7], intermediates_only=True
        )
    for found, wanted in zip(encoder(pictures, [3, 7]), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_layers_beyond_the_last_one_requested_are_not_computed(encoder):
    runs = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: runs.append(number))
        for number, block in enumerate(encoder.network.blocks)
    ]
    encoder(torch.rand(1, 3, 32, 32), [1, 4])
    for hook in hooks:
        hook.remove()
    assert runs == [0, 1, 2, 3, 4]


def test_frozen_whatever_its_owner_does(encoder):
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    maps = encoder(torch.rand(1, 3, 32, 32, requires_grad=True), [0])
    assert not maps[0].requires_grad


def test_random_weights_are_always_the_same_and_disturb_nobody(encoder, caplog):
    torch.manual_seed(7)
    with caplog.at_level(logging.WARNING):
        again = DinoEncoder(TINY, "random")
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    assert again.untrained
    assert f"untrained ({TINY} has random weights)" in caplog.text


@pytest.mark.parametrize("kind", ["safetensors", "pth", "official DINO checkpoint"])
def test_local_files_need_no_hub(offline, encoder, tmp_path, caplog, kind):
    torch.manual_seed(1)
    donor = timm.create_model(TINY, num_classes=10)
    state = donor.state_dict()
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "pth":
        torch.save(state, path)
    else:
        backbone = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("head.")}
        torch.save({"teacher": backbone | {"head.mlp.0.weight": torch.zeros(2)}, "epoch": 1}, path)
    with caplog.at_level(logging.WARNING):
        loaded = DinoEncoder(TINY, path)
    for key, value in loaded.network.state_dict().items():
        assert torch.equal(value, state[key])
    assert not loaded.untrained
    assert "untrained" not in caplog.text


def test_a_small_models_file_is_refused_by_the_base_model(tmp_path):
    shapes_on_disk("vit_small_patch8_224.dino", tmp_path / "small.pth")
    with pytest.raises(
        ValueError, match=r"small.pth does not fit timm's vit_base_patch8_224.dino: .* instead of"
    ):
        DinoEncoder("vit_base_patch8_224.dino", tmp_path / "small.pth")


def test_offline_without_weights_both_ways_are_named(offline):
    with pytest.raises(OSError, match=r"connect to the network once .* or give a local .* \(dino.weights\)"):
        DinoEncoder(TINY, "hub")


@pytest.mark.parametrize(
    "name", ["vit_nonsense", "resnet18", "swin_tiny_patch4_window7_224", f"{TINY}.nonsense"]
)
def test_only_vision_transformers_of_timm(name):
    with pytest.raises(ValueError, match=rf"'{name}' cannot be .* expected a vision transformer of timm"):
        DinoEncoder(name, "random")


def test_an_encoder_is_described_by_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    path.write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": settings}))
    encoder = DinoEncoder(str(path), "random")
    assert encoder.depth == 2
    assert encoder(torch.rand(1, 3, 32, 16), [0, 1])[1].shape == (1, 24, 4, 2)
    with pytest.raises(ValueError, match="no hub"):
        DinoEncoder(str(path), "hub")
    with pytest.raises(FileNotFoundError, match=r"dino\.model"):
        DinoEncoder(str(tmp_path / "none.json"), "random")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[1]",
        "{}",
        '{"architecture": 3}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": 3}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": "2"}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"unknown": 2}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 25}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 8192, "num_heads": 8}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1000000}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": NaN}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"patch_size": 0}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1e999}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 0}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"drop_rate": 2}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"num_classes": 5}}',
        '{"architecture": "hf-hub:timm/vit_tiny_patch16_224"}',
        '{"architecture": "resnet18"}',
        '{"architecture": "vit_tiny_patch16_224", "more": 1}',
    ],
)
def test_a_json_file_that_describes_no_encoder_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "small.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"small\.json"):
        DinoEncoder(str(path), "random")
