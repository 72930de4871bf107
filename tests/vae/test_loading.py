"""medsora.vae.base, medsora.vae.model: where a VAE comes from and goes to: strict loads, round trips, one
sentence for what does not fit.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsora.vae import FrequencyCompensatedVAE
from tests.vae.conftest import TINY, random_video

WEIGHTS = "diffusion_pytorch_model.safetensors"


@torch.no_grad()
def test_save_and_load_round_trip(trained, tmp_path: Path) -> None:
    trained.set_scaling_factor(0.7)
    trained.save_pretrained(tmp_path / "saved")
    loaded = FrequencyCompensatedVAE.from_pretrained(tmp_path / "saved")
    assert loaded.scaling_factor == 0.7
    assert loaded.config.compensation_kind == trained.config.compensation_kind
    assert not loaded.training
    video = random_video(9)
    assert torch.equal(loaded.encode(video), trained.encode(video))
    assert torch.equal(loaded.decode(loaded.encode(video)), trained.decode(trained.encode(video)))


@torch.no_grad()
def test_a_vae_saved_before_there_were_kinds_is_causal(base_folder: Path, tmp_path: Path) -> None:
    causal = FrequencyCompensatedVAE.from_base(base_folder, compensation_kind="causal")
    causal.save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert config.pop("compensation_kind") == "causal"
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    loaded = FrequencyCompensatedVAE.from_pretrained(tmp_path / "old")
    assert loaded.config.compensation_kind == "causal"
    assert _same(loaded, causal)
    config["compensation_kind"] = "standard"
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        FrequencyCompensatedVAE.from_pretrained(tmp_path / "old")


def test_a_base_comes_from_its_own_folder_too(base_folder: Path, vae) -> None:
    kind = vae.config.compensation_kind
    direct = FrequencyCompensatedVAE.from_base(base_folder / "vae", compensation_kind=kind)
    assert _same(direct, vae)


@torch.no_grad()
def test_a_saved_vae_without_compensation_is_a_base(base_folder: Path, tmp_path: Path) -> None:
    bare = FrequencyCompensatedVAE.from_base(base_folder, compensation=False)
    bare.set_scaling_factor(0.7)
    bare.save_pretrained(tmp_path / "vae")
    loaded = FrequencyCompensatedVAE.from_base(tmp_path)
    assert _same(loaded, bare)
    assert loaded.scaling_factor == 0.7
    video = random_video(9)
    assert torch.equal(loaded.encode(video), bare.encode(video))


def test_saved_base_loads_again_from_config_and_half_precision_weights(vae, tmp_path: Path) -> None:
    vae.set_scaling_factor(0.25)
    vae.save_base(tmp_path / "base.json", tmp_path / "base.safetensors")
    assert {value.dtype for value in load_file(tmp_path / "base.safetensors").values()} == {torch.float16}
    loaded = FrequencyCompensatedVAE.from_base(tmp_path / "base.json", weights=tmp_path / "base.safetensors")
    assert loaded.scaling_factor == 0.25
    for name, value in vae.base_state_dict().items():
        assert loaded.base_state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.base_state_dict()[name], value.half().float())


def test_a_changed_setting_of_a_saved_base_is_refused(vae, tmp_path: Path) -> None:
    config, weights = tmp_path / "base.json", tmp_path / "base.safetensors"
    vae.save_base(config, weights)
    scale, text = vae.base_settings()["scaling_factor"], config.read_text()
    config.write_text(text.replace(f'"scaling_factor": {scale}', '"scaling_factor": 0.25'))
    with pytest.raises(ValueError, match=r"base.json: is damaged or was changed.* remove its key _crc32"):
        FrequencyCompensatedVAE.from_base(config, weights=weights)
    settings = {key: value for key, value in json.loads(config.read_text()).items() if key != "_crc32"}
    config.write_text(json.dumps(settings))  # as earlier versions wrote it, or a user changed it
    assert FrequencyCompensatedVAE.from_base(config, weights=weights).scaling_factor == 0.25


def test_truncated_weights_are_named(vae, tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    save_file(vae.base_state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.safetensors: not a complete safetensors file"):
        FrequencyCompensatedVAE.from_base(TINY, weights=file)


def test_weights_of_another_architecture_are_refused(vae, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(vae.base_state_dict(), file)
    with pytest.raises(ValueError, match=r"has shape .* is expected"):
        FrequencyCompensatedVAE.from_base(TINY | {"block_out_channels": [16, 16, 16, 16]}, weights=file)
    with pytest.raises(ValueError, match=r"another architecture.*missing"):
        FrequencyCompensatedVAE.from_base(TINY | {"layers_per_block": 2}, weights=file)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        FrequencyCompensatedVAE.from_base(TINY, weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize("change", ["fewer", "more", "other shape"])
def test_a_saved_vae_that_does_not_fit_is_refused(vae, tmp_path: Path, change: str) -> None:
    vae.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name = next(name for name in state if "up_blocks.0.resnets.0.compensation.conv_in" in name)
    if change == "fewer":
        del state[name]
    elif change == "more":
        state["stranger"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        FrequencyCompensatedVAE.from_pretrained(tmp_path)


def test_a_cut_saved_vae_is_one_sentence(vae, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OSError, match="no whole saved VAE") as caught:
        FrequencyCompensatedVAE.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_base_folder_is_one_sentence(base_folder: Path) -> None:
    file = base_folder / "vae" / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OSError, match="could not be loaded from there") as caught:
        FrequencyCompensatedVAE.from_base(base_folder)
    assert "\n" not in str(caught.value)


def test_a_base_folder_with_a_key_missing_is_refused(base_folder: Path) -> None:
    file = base_folder / "vae" / WEIGHTS
    state = load_file(file)
    del state["decoder.conv_in.conv.bias"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit.*decoder\.conv_in\.conv\.bias"):
        FrequencyCompensatedVAE.from_base(base_folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_chanels": 16}, "did you mean 'latent_channels'"),
        ({"temporal_compression_ratio": 8}, "set it to 4"),
        ({"norm_num_groups": 5}, "cannot be built"),
    ],
)
def test_bad_configs_name_what_is_wrong(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrequencyCompensatedVAE.from_base(TINY | config)


def test_bad_places_name_what_was_expected(vae, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty").mkdir()
    vae.save_pretrained(tmp_path / "compensated")
    for place, error, message in [
        (tmp_path / "none.json", FileNotFoundError, "no such config"),
        (tmp_path / "list.json", ValueError, "JSON object"),
        (tmp_path / "broken.json", ValueError, "not a JSON file"),
        (tmp_path / "empty", FileNotFoundError, "neither config.json"),
        (tmp_path / "nowhere", FileNotFoundError, "no such folder, and no hub name"),
        (tmp_path / "compensated", ValueError, "FrequencyCompensatedVAE.from_pretrained"),
    ]:
        with pytest.raises(error, match=message):
            FrequencyCompensatedVAE.from_base(place)


def test_a_hub_name_without_a_network_names_both_ways(monkeypatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="local diffusers folder, or a hub name") as caught:
        FrequencyCompensatedVAE.from_base("nobody/no-such-vae")
    assert "\n" not in str(caught.value)


def test_the_saved_config_is_plain_json(vae, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["base_config"]["block_out_channels"] == TINY["block_out_channels"]
    assert not [key for key in config["base_config"] if key.startswith("_")]


def _same(one: FrequencyCompensatedVAE, other: FrequencyCompensatedVAE) -> bool:
    mine, theirs = one.base_state_dict(), other.base_state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
