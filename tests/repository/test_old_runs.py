"""What commit 228d447 wrote still works: runs, caches, models, sampled videos, features and configs.

`tests/support/written_at_228d447.tar.xz` was written at that commit by `tests/support/make_old_run.py`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file

from medsora.config.load import load_config
from medsora.config.schema import all_keys
from tests.support.make_old_run import KILLED_AFTER, VIDEOS, call, evaluation, flat, optimizer_norms
from tests.support.paths import ROOT

ARCHIVE = ROOT / "tests" / "support" / "written_at_228d447.tar.xz"
NEW_NAMES = {f"{new.split('.')[0]}.{key.was}": new for new, key in all_keys().items() if key.was}
CLOSE = {"rel": 2e-4, "abs": 1e-6}  # sums may be ordered otherwise than they were
OTHER = {"videos/ema": "videos/raw", "videos/raw": "videos/ema"}
MODELS = {
    "a run": ("videos/ema", "runs/old/dit-tiny"),
    "a run's raw weights": ("videos/raw", "runs/old/dit-tiny", "--raw"),
    "a checkpoint": ("videos/ema", "runs/old/dit-tiny/checkpoints/step-0000019"),
    "an exported model": ("videos/ema", "exported"),
    "a saved pipeline": ("videos/raw", "pipeline"),
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def expected(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in a copy of the archive's content; what its commands wrote or computed beyond that."""
    shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text(encoding="utf-8"))


def kept() -> dict[Path, int]:
    """When each entry that is found by a key, and each phantom clip, was written."""
    return {
        path: path.stat().st_mtime_ns
        for pattern in ("cache/*/**/*.safetensors", "cache/**/*.npy", "phantom-clips*/*")
        for path in Path("runs").glob(pattern)
    }


@pytest.mark.parametrize(("stage", "script"), [("vae", "train_vae"), ("dit-tiny", "train_dit")])
def test_a_run_is_resumed(stage: str, script: str, expected: dict[str, Any]) -> None:
    """With the losses of the run that nobody stopped, and without rendering or encoding anything again."""
    run, stopped, before = Path("runs/old", stage), KILLED_AFTER[stage], kept()
    lines_before = (run / "log.jsonl").read_text().splitlines()
    call(script, "--config", "old.yaml")
    assert f"resuming after step {stopped} of 24." in (run / "messages.txt").read_text()
    lines = (run / "log.jsonl").read_text().splitlines()
    assert lines[: len(lines_before)] == lines_before
    assert kept() == before
    logged = [json.loads(line) for line in lines[len(lines_before) :]]
    assert [line["step"] for line in logged] == [line["step"] for line in expected[stage]["log"]]
    for line, wanted in zip(logged, expected[stage]["log"], strict=True):
        metrics = {key: value for key, value in wanted.items() if not key.startswith("speed/")}
        assert {key: line.get(key) for key in metrics} == pytest.approx(metrics, **CLOSE)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert newest.name == "step-0000024"
    assert optimizer_norms(newest) == pytest.approx(expected[stage]["optimizer"], **CLOSE)


def test_caches_have_the_same_keys_and_values_when_they_are_filled_anew() -> None:
    call("medsora.training.fill_caches", "--config", "old.yaml", "cache.dir=anew")
    old, new = Path("runs/cache"), Path("anew")
    entries = sorted(path.relative_to(old) for path in old.glob("*/*/*.safetensors"))
    assert sorted(path.relative_to(new) for path in new.glob("*/*/*.safetensors")) == entries
    for entry in entries:
        tensors, anew = load_file(old / entry), load_file(new / entry)
        assert anew.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert anew[name].dtype == tensor.dtype
            np.testing.assert_allclose(anew[name], tensor, rtol=1e-3, atol=1e-4, err_msg=f"{entry}: {name}")


@pytest.mark.parametrize(
    ("videos", "model", "options"), [(v, m, o) for v, m, *o in MODELS.values()], ids=MODELS
)
def test_a_model_samples_the_same_video(videos: str, model: str, options: list[str]) -> None:
    call("sample_ddim", "--model", model, "--out", "again", *VIDEOS, *options)
    frames, wanted = frames_of("again/video-00001"), frames_of(f"{videos}/video-00001")
    other = frames_of(f"{OTHER[videos]}/video-00001")
    assert np.abs(frames - wanted).mean() < 0.2 * np.abs(other - wanted).mean()


def frames_of(folder: str) -> np.ndarray:
    frames = [cv2.imread(str(path)) for path in sorted(Path(folder).glob("*.png"))]
    return np.stack(frames).astype(int)


def test_a_folder_of_sampled_videos_is_gone_on_with() -> None:
    written = Path("videos/ema/video-00000").stat().st_mtime_ns
    call("sample_ddim", "--model", "runs/old/dit-tiny", "--out", "videos/ema", *VIDEOS, "--num-videos", "3")
    assert len(frames_of("videos/ema/video-00002")) == 9
    assert Path("videos/ema/video-00000").stat().st_mtime_ns == written


def test_features_of_an_evaluation_are_found() -> None:
    before, wanted = kept(), json.loads(Path("results/results.json").read_text())
    assert [path.suffix for path in before].count(".npy") == 2
    call("evaluate", *evaluation())
    assert kept() == before
    found = json.loads(Path("results/results.json").read_text())
    assert found["sets"]["real"]["content_sha256"] == wanted["sets"]["real"]["content_sha256"]


def test_a_config_with_every_key_is_read_as_it_was(expected: dict[str, Any]) -> None:
    for changes, name in (([], "every_key"), (expected["changes"], "every_key_changed")):
        values = dict(flat(dataclasses.asdict(load_config("every_key.yaml", changes))))
        wanted = {NEW_NAMES.get(key, key): value for key, value in expected[name].items()}
        found = {key: values.get(key) for key in wanted}
        assert found == wanted
        assert {key: type(value) for key, value in found.items()} == {
            key: type(value) for key, value in wanted.items()
        }
