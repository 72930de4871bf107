"""What a model folder may hold, whoever made it: everything else is refused in one line before it costs."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from torch import nn

from medsora.config.load import config_from_dict
from medsora.config.schema import Config
from medsora.errors import BadInput
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import find_model, trained_tokenizer, trained_vae
from medsora.saved.manifest import MANIFEST
from medsora.training.stage1.build import build_vae
from medsora.vae.choices import TOKENIZERS
from tests.support.endogen.tiny_tokenizer import write_run
from tests.support.tiny_pipeline import VAE, tiny_pipeline

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(folder)
    (folder / MANIFEST).unlink(missing_ok=True)  # a stranger's folder agrees with its manifest, if it has one
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    for path in original.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(original)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def load(folder: Path) -> MedSoraPipeline:
    return MedSoraPipeline.from_folder(find_model(folder))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def put(path: Path, value: Any, *keys: str) -> None:
    values = json.loads(path.read_text())
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "keys", "value", "words"),
    [
        ("model_index.json", "frames", 10**9, "frames is 1000000000 but must lie between 1 and 4097"),
        ("model_index.json", "size", [2**20, 2**20], "size is 1048576 but must lie"),
        ("model_index.json", "size", [], r"size must be \[height, width\]"),
        ("model_index.json", "size", "64x64", r"size must be \[height, width\]"),
        ("model_index.json", "size", ["64", "64"], "size is '64' but must be a whole number"),
        ("model_index.json", "fps", 0, "fps is 0 but must lie"),
        ("model_index.json", "fps", float("inf"), "fps is inf but must lie"),
        ("model_index.json", "fps", float("nan"), "fps is nan but must lie"),
        ("model_index.json", "frames", True, "frames is True but must be a whole number"),
        ("model_index.json", "frames", [16], "frames is a list"),
        ("model_index.json", "_class_name", ["a\nb"] * 9999, "describes a list, not a MedSoraPipeline"),
        (
            "scheduler/scheduler_config.json",
            "num_train_timesteps",
            10**9,
            "num_train_timesteps is 1000000000",
        ),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 999, "num_train_timesteps can be 1000"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1] * 3, "trained_betas must be 1000 numbers"),
        ("scheduler/scheduler_config.json", "beta_end", 1e30, "beta_end is 1e[+]30 but must lie"),
        ("scheduler/scheduler_config.json", "timestep_spacing", "x\ny", "must be leading or trailing"),
        ("scheduler/scheduler_config.json", "beta_schedule", "x", "cannot be loaded as a DDIMScheduler"),
        ("scheduler/scheduler_config.json", "_class_name", {}, "a dict, which cannot sample here"),
        ("denoiser/config.json", "depth", 10**5, "depth is 100000 but must lie"),
        ("denoiser/config.json", "width", 2**13, "do not fit the config beside them"),
        ("denoiser/config.json", "heads", None, "heads is a NoneType but must be a whole number"),
        ("denoiser/config.json", "quantization_config", {}, "'quantization_config' is no setting"),
        ("vae/config.json", "base_config", "text", "base_config is 'text' but must be an object"),
        (
            "vae/config.json",
            "base_config layers_per_block",
            10**6,
            "layers_per_block is 1000000 but",
        ),
        ("vae/config.json", "base_config block_out_channels", [8] * 5000, "has 5,000 entries"),
        ("vae/config.json", "base_config act_fn", "eval", "cannot be loaded as a FrequencyCompensatedVAE"),
    ],
)
def test_values_that_no_model_has(file: str, keys: str, value: Any, words: str, folder: Path) -> None:
    put(folder / file, value, *keys.split())
    refused(folder, words)


@pytest.mark.parametrize("file", ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_what_stands_in_a_files_place(file: str, folder: Path) -> None:
    path = folder / file
    path.write_text(DEEP)
    refused(folder, "is not JSON .it is nested too deep")
    path.write_bytes(b"\xff" * 99)
    refused(folder, "is not JSON")
    with path.open("wb") as whole:
        whole.truncate(2**34)
    refused(folder, "has 17,179,869,184 bytes, more than")
    path.unlink()
    os.mkfifo(path)
    refused(
        folder, "is no file" if file != "model_index.json" else "holds neither a run nor a saved pipeline"
    )


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        (
            {f"x{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(30_000)},
            None,
            "names 30,000 tensors, more than 20,000",
        ),
        ({"x": {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}}, None, "holds 'I64'; weights are F64"),
        (
            {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
            None,
            "not a complete safetensors",
        ),
        ({"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, None, "do not fit the config"),
        ({}, 2**62, "has a header of 4,611,686,018,427,387,904 bytes"),
        ([], None, "not a complete safetensors file"),
    ],
)
def test_weights_that_no_model_has(header: Any, length: int | None, words: str, folder: Path) -> None:
    text = json.dumps(header).encode()
    path = folder / "denoiser" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    refused(folder, words)


def test_weights_in_parts_are_not_followed(folder: Path) -> None:
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../../etc/passwd"}, "metadata": {}}))
    refused(folder, "holds weights in parts")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers_per_block": 10**6}, "layers_per_block is 1000000 but must lie between 1 and 32"),
        ({"block_out_channels": "8" * 5000}, "block_out_channels is '88888888.* but must be a list"),
        (
            {"layers_per_block": 32, "block_out_channels": [8] * 900, "up_block_types": ["x"] * 900},
            "block_out_channels has 900 entries, more than 8",
        ),
        ({"norm_num_groups": 5}, "cannot be loaded as a AutoencoderKLCogVideoX"),
        ({"block_out_channels": [8192] * 4}, "describes [0-9,]+ parameters, more than 1,000,000,000"),
    ],
)
@pytest.mark.parametrize("form", ["json", "folder"])
def test_the_base_that_a_config_names_has_the_same_limits(
    form: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """In stage 1, and in stage 2 where it is used untouched; `describes` is of bases without weights only."""
    base = tmp_path / "base.json"
    if form == "folder":
        base, words = tmp_path / "base", words if "describes" not in words else "do not fit the config"
        AutoencoderKLCogVideoX(**VAE).save_pretrained(base / "vae")
    described = base if form == "json" else base / "vae" / "config.json"
    known = VAE if form == "json" else json.loads(described.read_text())
    described.write_text(json.dumps(known | settings))
    config = config_from_dict({"vae": {"base": str(base), "path": "base"}}, "a test")
    for build in (build_vae, trained_vae):
        with pytest.raises(BadInput, match=words) as error:
            build(config)
        assert "\n" not in str(error.value)


def test_weights_of_a_base_are_looked_at_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps(VAE))
    weights = tmp_path / "base.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**62))
    config = config_from_dict(
        {"vae": {"base": str(tmp_path / "base.json"), "weights": str(weights)}}, "a test"
    )
    with pytest.raises(BadInput, match="has a header of 4,611,686,018,427,387,904 bytes"):
        build_vae(config)
    for path in (weights, tmp_path / "base.json"):
        path.unlink()
        os.mkfifo(path)  # reading one would wait for ever
        with pytest.raises(BadInput, match=f"{path.name} is (missing|no file)"):
            build_vae(config)


@pytest.mark.parametrize("build", [build_vae, trained_tokenizer])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers_per_block": 10**6}, "layers_per_block is 1000000 but must lie between 1 and 32"),
        ({"block_out_channels": [2**30] * 4}, "block_out_channels is 1073741824 but must lie"),
        (None, "base.json is no file"),
        ("phantom", "weights.safetensors is missing"),
    ],
)
def test_a_tokenizers_base_has_the_same_limits(
    settings: dict[str, Any] | str | None, words: str, build: Callable[[Config], nn.Module], tmp_path: Path
) -> None:
    """In stage 1, and in EndoGen's where it is used untouched; its weights may come with a preset's name."""
    base = settings if isinstance(settings, str) else str(tmp_path / "base.json")
    weights = tmp_path / "weights.safetensors"
    os.mkfifo(weights)  # reading one would wait for ever
    if isinstance(settings, dict):
        Path(base).write_text(json.dumps(TOKENIZERS["phantom"] | settings))
    elif settings is None:
        os.mkfifo(base)
    described = {"kind": "vq", "path": "base", "base": base, "weights": str(weights)}
    with pytest.raises(BadInput, match=words) as error:
        build(config_from_dict({"vae": described}, "a test"))
    assert "\n" not in str(error.value)


def test_a_vae_with_the_oldest_names_of_attention_is_taken(tmp_path: Path) -> None:
    """stabilityai/sd-vae-ft-mse has them, and diffusers renames them when it loads."""
    torch.manual_seed(0)
    kept = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    kept.save_pretrained(tmp_path)
    path, old = tmp_path / "diffusion_pytorch_model.safetensors", {}
    for name, tensor in load_file(path).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor
    assert old.keys() != kept.state_dict().keys()
    save_file(old, path, metadata={"format": "pt"})
    vae = trained_vae(config_from_dict({"vae": {"kind": "per-frame", "base": str(tmp_path)}}, "a test"))
    for name, tensor in kept.state_dict().items():
        assert torch.equal(vae.base.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("quantize", False, "trained without quantisation"),
        ("base_config lookup_from_codebook", True, "lookup_from_codebook is for latents that are codes"),
        ("base_config num_vq_embeddings", 33, "do not fit the config beside them"),
    ],
)
def test_a_tokenizer_that_writes_other_codes(keys: str, value: Any, words: str, tmp_path: Path) -> None:
    EndoGenPipeline.from_run(write_run(tmp_path / "run", steps=(2,))).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / MANIFEST).unlink()
    put(tmp_path / "saved" / "tokenizer" / "config.json", value, *keys.split())
    with pytest.raises(BadInput, match=words):
        EndoGenPipeline.from_folder(find_model(tmp_path / "saved"))


@pytest.mark.parametrize(("key", "value"), [("frames", 5), ("size", [32, 40])])
def test_a_clip_that_the_vae_cannot_return(key: str, value: Any, folder: Path) -> None:
    put(folder / "model_index.json", value, key)
    with pytest.raises(BadInput, match="the next valid"):
        load(folder)(num_inference_steps=1)
