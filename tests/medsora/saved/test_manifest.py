"""medsora.saved.manifest: what changed in a saved model after it was written is found before it is used."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from medsora.errors import BadInput
from medsora.runtime.files import write_json
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import find_vae, load_vae
from medsora.saved.manifest import MANIFEST, checkpoint_problem, digest_folder, model_files, write_manifest
from tests.support.disk.failing_reads import ERRORS, failing_reads
from tests.support.tiny_pipeline import tiny_pipeline, tiny_vae, write_run

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(folder)
    return folder


def flip(path: Path) -> None:
    """Turn the last bit of the last number or letter: the file is as long and as readable as before."""
    content = bytearray(path.read_bytes())
    place = max(k for k, byte in enumerate(content) if path.suffix != ".json" or chr(byte).isdigit())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "file",
    [
        f"denoiser/{WEIGHTS}",
        f"vae/{WEIGHTS}",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ],
)
def test_a_flipped_bit_of_a_saved_model_is_found(file: str, original: Path, tmp_path: Path) -> None:
    saved = shutil.copytree(original, tmp_path / "saved")
    flip(saved / file)
    with pytest.raises(BadInput, match=rf"{Path(file).name}.*(does not match its checksum|must|can be)"):
        MedSoraPipeline.from_pretrained(saved)
    (saved / MANIFEST).unlink()
    if file.endswith(WEIGHTS):
        MedSoraPipeline.from_pretrained(saved)  # models of earlier versions have none


def test_a_models_manifest_lists_settings_and_weights_alone(original: Path, tmp_path: Path) -> None:
    listed = json.loads((original / MANIFEST).read_text())["files"]
    copy = shutil.copytree(original, tmp_path / "copy")
    (copy / "README.md").write_text("a card, which may be edited")
    assert sorted(path.relative_to(copy).as_posix() for path in model_files(copy)) == sorted(listed)
    assert MANIFEST not in listed


def test_a_vae_is_known_by_its_own_manifest_and_by_that_of_the_model_around_it(
    original: Path, tmp_path: Path
) -> None:
    saved = shutil.copytree(original, tmp_path / "saved")
    tiny_vae().save_pretrained(tmp_path / "final")
    write_manifest(tmp_path / "final", model_files(tmp_path / "final"))
    for named in (saved, tmp_path / "final"):
        folder = find_vae(named)
        load_vae(folder)
        flip(folder / WEIGHTS)
        with pytest.raises(BadInput, match="does not match its checksum"):
            load_vae(folder)
    (saved / MANIFEST).write_text("{")
    assert load_vae(shutil.copytree(original / "vae", tmp_path / "alone")) is not None


@pytest.mark.parametrize("error", ERRORS)
def test_no_read_that_fails_once_keeps_a_file_out_of_a_manifest(
    error: int, original: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(original, tmp_path / "copy")

    def written() -> dict:
        return {"listed": digest_folder(copy, model_files(copy)), "all": digest_folder(copy / "denoiser")}

    with failing_reads(copy, error, 0, 0) as reads:
        wanted = written()
    assert reads.count > len(wanted["listed"]) > 3
    for first in range(1, reads.count + 1):
        with failing_reads(copy, error, first, 1):
            assert written() == wanted


def test_a_run_is_sampled_with_the_vae_it_was_trained_with(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(5,))
    pipeline = MedSoraPipeline.from_run(run, vae_dtype="bf16")
    assert str(pipeline.vae.dtype) == "torch.bfloat16"
    flip(run / "vae" / WEIGHTS)
    with pytest.raises(BadInput, match="vae is not the VAE that the denoiser was trained with"):
        MedSoraPipeline.from_run(run)


@pytest.mark.parametrize("content", [b'[{"name": "mine"}]', b'{"files": ["a"]}'])
def test_a_manifest_of_another_program_beside_a_model_is_ignored(content: bytes, tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / MANIFEST).write_bytes(content)
    load_vae(tmp_path / "vae")


def test_a_manifest_that_cannot_be_one_is_refused_at_once(original: Path, tmp_path: Path) -> None:
    saved = shutil.copytree(original, tmp_path / "saved")
    whole = (saved / MANIFEST).read_bytes()
    (saved / MANIFEST).write_bytes(bytes([whole[0] | 0x80]) + whole[1:])
    with pytest.raises(BadInput, match="cannot be read"):
        MedSoraPipeline.from_pretrained(saved)
    (saved / MANIFEST).unlink()
    os.mkfifo(saved / MANIFEST)  # reading one would wait for ever
    with pytest.raises(BadInput, match="cannot be read"):
        MedSoraPipeline.from_pretrained(saved)


def test_what_a_manifest_lists_beside_the_model_is_not_read(original: Path, tmp_path: Path) -> None:
    """A file of 16 GiB that takes no room would take minutes, and 1,000 more names of one that is read."""
    saved = shutil.copytree(original, tmp_path / "saved")
    with (saved / "vae" / "hole.safetensors").open("wb") as file:
        file.truncate(2**34)
    listed = json.loads((saved / MANIFEST).read_text())
    listed["files"]["vae/hole.safetensors"] = {"size": 2**34, "sha256": ""}
    listed["files"] |= {"vae" + "/" * k + "config.json": {"size": -1, "sha256": ""} for k in range(2, 1000)}
    write_json(saved / MANIFEST, listed)
    MedSoraPipeline.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ema/../state.json", "its manifest names a file twice: ema/../state.json"),
        ("../../pipeline.json", "its manifest names a file outside the folder"),
        ("a\nb" * 999, r"a\\nba\\nb.* is missing"),
    ],
)
def test_a_checkpoints_manifest_names_its_files_once(name: str, problem: str, tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run", steps=(5,)) / "checkpoints" / "step-0000005"
    assert checkpoint_problem(checkpoint) is None
    listed = json.loads((checkpoint / MANIFEST).read_text())
    listed["files"][name] = listed["files"]["state.json"]
    write_json(checkpoint / MANIFEST, listed)
    found = checkpoint_problem(checkpoint)
    assert re.search(problem, found)
    assert found.isprintable()
    assert len(found) < 300
