"""What a model folder may hold, whoever made it: everything else is refused in one line before it costs."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from medsora.errors import BadInput
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import find_model
from medsora.saved.manifest import MANIFEST
from tests.support.tiny_pipeline import tiny_pipeline

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
        ({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, None, "not a whole safetensors"),
        ({"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, None, "do not fit the config"),
        ({}, 2**62, "has a header of 4,611,686,018,427,387,904 bytes"),
        ([], None, "not a whole safetensors file"),
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
