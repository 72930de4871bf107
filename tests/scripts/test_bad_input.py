"""What a user can get wrong in training: one sentence each, status 2, no traceback, nothing half-written.

Sampling's bad input is in test_sample_ddim.py, checkpoints cut in half in medsora/training/test_resume.py.
"""

from __future__ import annotations

import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import train_dit
import train_vae
from medsora.config.load import save_config
from medsora.config.schema import Config
from medsora.data.reading.video_io import read_frames, write_video
from medsora.runtime.exit import exit_with_status
from medsora.saved.manifest import checkpoint_problem
from medsora.training import stage_parts
from tests.support import tiny_training as tiny

SCRIPTS = {"vae": train_vae.main, "dit": train_dit.main}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_clips(tmp_path_factory.getbasetemp() / "tiny-clips")


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_vae(tmp_path_factory.getbasetemp() / "tiny-vae")


@pytest.fixture
def configure(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """`configure(**changes)`: a config that would train, but for what `changes` spoil."""
    monkeypatch.chdir(tmp_path)

    def make(**changes) -> Config:
        return tiny.tiny_config(Path(), clips, **{"vae__path": str(vae_folder)} | changes)

    return make


@pytest.fixture
def refusal(
    configure: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """`refusal(stage, overrides, **changes)`: the one sentence with which the script refuses to train."""

    def run(stage: str, *overrides: str, **changes) -> str:
        save_config(configure(**changes), tmp_path / "config.yaml")
        monkeypatch.setattr(sys, "argv", ["train", "--config", str(tmp_path / "config.yaml"), *overrides])
        capsys.readouterr()
        tiny.forget_precision()  # set by whichever test ran before in this process
        with pytest.raises(SystemExit) as left:
            exit_with_status(SCRIPTS[stage])
        err = capsys.readouterr().err
        sentences = [line for line in err.splitlines() if line.startswith("error: ")]
        assert left.value.code == 2, err
        assert len(sentences) == 1, err
        assert err.rstrip().endswith(sentences[0]), err  # it is the last line, and one line
        assert "Traceback" not in err
        return sentences[0]

    return run


def nothing_written(tmp_path: Path) -> bool:
    return not list((tmp_path / "runs").rglob("dit-*")) and not list((tmp_path / "runs").rglob("vae"))


# Data


def copy_clips(clips: Path, folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True)
    for path in sorted(clips.glob("*.mkv"))[:count]:
        shutil.copy(path, folder)
    return folder


def spoil(folder: Path, clips: Path) -> None:
    """Put a text file, a truncated video and a short one into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = read_frames(clips / "phantom-00000.mkv")
    (folder / "text.mp4").write_text("no video at all\n" * 50)
    write_video(folder / "truncated.mp4", frames, 10)
    whole = (folder / "truncated.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "short.mp4", frames[:9], 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, clips: None, "there is no folder"),
        (lambda folder, clips: folder.mkdir(), "holds no videos"),
        (spoil, "gives no usable clip of 16 frames"),
    ],
    ids=["missing", "empty", "unusable"],
)
def test_no_clips(make: Callable, words: str, refusal: Callable, clips: Path, tmp_path: Path) -> None:
    make(tmp_path / "videos", clips)
    sentence = refusal("vae", data__root=str(tmp_path / "videos"))
    assert words in sentence
    assert str(tmp_path / "videos") in sentence
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["text.mp4", "truncated.mp4", "short.mp4"])
def test_a_single_bad_file_is_named(name: str, refusal: Callable, clips: Path, tmp_path: Path) -> None:
    spoil(tmp_path / "videos", clips)
    for other in (tmp_path / "videos").iterdir():
        if other.name != name:
            other.unlink()
    assert name in refusal("vae", data__root=str(tmp_path / "videos"))


def test_bad_files_among_good_ones_and_mixed_sizes_do_not_stop_training(
    configure: Callable, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_clips(clips, tmp_path / "videos")
    spoil(folder, clips)
    random = np.random.default_rng(0)
    write_video(folder / "wide.mp4", random.integers(0, 255, (17, 48, 96, 3), dtype=np.uint8), 10)
    config = configure(
        data__root=str(folder), train_vae__max_steps=1, train_vae__eval_every=100, data__holdout=0.0
    )
    run = tiny.train("vae", config)
    assert (run / "final" / "config.json").is_file()
    err = capsys.readouterr().err
    for name in ("text.mp4", "truncated.mp4", "short.mp4"):
        assert f"left out {name}" in err


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_shapes_that_the_vae_cannot_return(stage: str, refusal: Callable, tmp_path: Path) -> None:
    assert "valid sizes are 32 and 48" in refusal(stage, data__size=40)
    assert "valid counts are 9 and 16" in refusal(stage, data__frames=12)
    assert nothing_written(tmp_path)


# Models


def test_a_missing_vae(refusal: Callable, tmp_path: Path) -> None:
    assert "train-vae with the same config first" in refusal("dit", "vae.path=null")
    assert f"no trained VAE in {tmp_path / 'elsewhere'}" in refusal(
        "dit", vae__path=str(tmp_path / "elsewhere")
    )
    assert nothing_written(tmp_path)


def test_a_vae_cut_in_half(refusal: Callable, vae_folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(vae_folder, tmp_path / "cut")
    weights = cut / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert f"{weights} is not a complete safetensors file" in refusal("dit", vae__path=str(cut))


def test_another_models_checkpoint(
    refusal: Callable, configure: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a model with other blocks (as S given to B), latent channels or settings."""
    quick = {"alignment__weight": 0, "train_dit__max_steps": 1}
    run = tiny.train("dit", configure(**quick))
    deeper = {**tiny.DENOISER, "depth": 3}
    assert "denoiser.overrides.depth=2, but now it is 3" in refusal(
        "dit", **quick, denoiser__overrides=deeper
    )
    (run / "config.yaml").unlink()
    sentence = refusal("dit", **quick, denoiser__overrides=deeper)
    assert "holds 2 blocks, but this model has 3 blocks" in sentence
    (run / "config.yaml").unlink()
    other = tiny.write_vae(tmp_path / "eight", latent_channels=8)
    assert "latents of another VAE" in refusal("dit", **quick, vae__path=str(other))
    sentence = refusal("dit", **quick, denoiser__overrides={**tiny.DENOISER, "in_channels": 8})
    assert "works on 8 latent channels (denoiser.overrides) but the VAE has 4" in sentence


def test_overrides_that_no_denoiser_has(refusal: Callable, tmp_path: Path) -> None:
    assert "no setting 'deepth'" in refusal("dit", "denoiser.overrides.deepth=3")
    assert "wrong type" in refusal("dit", "denoiser.overrides.width=wide")
    assert "divisible by 64" in refusal("dit", "denoiser.overrides.patch=8")
    assert nothing_written(tmp_path)


# Weights that cannot be downloaded offline


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and caches that are empty."""

    def no_network(*arguments, **options) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_had_offline(refusal: Callable, tmp_path: Path) -> None:
    """Each sentence names the network and the local way."""
    lpips = refusal("vae", train_vae__lpips=0.1, train_vae__lpips_net="alex")
    assert "train_vae.lpips_trunk" in lpips
    assert "download" in lpips
    base = refusal("vae", vae__base="THUDM/CogVideoX-2b")
    assert "THUDM/CogVideoX-2b" in base
    assert "local diffusers folder" in base
    assert "network" in base
    dino = refusal("dit", dino__weights="hub")
    assert "dino.weights" in dino
    assert "network" in dino
    raft = refusal("dit", flow__estimator="raft_small")
    assert "flow.weights" in raft
    assert "network" in raft
    assert nothing_written(tmp_path)


# Places that cannot be written


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_a_file_in_the_way_of_the_run_folder(stage: str, refusal: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = refusal(stage, f"run.dir={tmp_path}/file/runs")
    assert "the run folder" in sentence
    assert "run.dir" in sentence
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_in_the_way_of_the_cache(refusal: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = refusal("dit", "cache.latents=disk", f"cache.dir={tmp_path}/file/cache")
    assert "cache.dir" in sentence


def test_a_file_in_the_way_of_the_phantom(refusal: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = refusal("vae", "data.root=null", f"phantom.folder={tmp_path}/file/clips")
    assert str(tmp_path / "file" / "clips") in sentence


@contextmanager
def small_files(largest_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `largest_bytes`: what a full disk does, for everybody's files alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_a_disk_that_is_full_from_the_start(stage: str, refusal: Callable, tmp_path: Path) -> None:
    with small_files(5000):
        sentence = refusal(stage, alignment__weight=0)
    assert "cannot be written" in sentence
    assert "make room" in sentence
    assert half_written(tmp_path) == []
    assert not list((tmp_path / "runs").rglob("checkpoints"))


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_a_disk_that_is_full_at_a_checkpoint(
    stage: str, refusal: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before stays, whole, and nothing of the new one is left."""
    save = stage_parts.save_checkpoint

    def save_without_room(root: Path, step: int, *arguments, **options) -> None:
        with small_files(5000 if step == 2 else 2**30):
            save(root, step, *arguments, **options)

    monkeypatch.setattr(stage_parts, "save_checkpoint", save_without_room)
    sentence = refusal(stage, alignment__weight=0, **{f"train_{stage}__save_every": 1})
    assert "step-0000002 cannot be written" in sentence
    assert "make room" in sentence
    assert half_written(tmp_path) == []
    (left,) = (tmp_path / "runs").rglob("checkpoints/*")
    assert left.name == "step-0000001"
    assert checkpoint_problem(left) is None


def half_written(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "runs").rglob(".*"))


# Values


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_vae.eval_clips=0", "train_vae.eval_clips is 0 but must be greater than 0"),
        ("train_dit.max_steps=0", "train_dit.max_steps is 0 but must be greater than 0, or null"),
        ("train_dit.sample_steps=1001", "sample_steps is 1001 but must be greater than 0 and at most 1000"),
        ("train_dit.betas=[0.9]", "two numbers"),
        ("train_dit.ema_decay=1", "below 1"),
        ("data.workers=-1", "at least 0"),
        ("data.clip_stride=-3", "greater than 0, or null"),
        ("run.seed=-1", "at least 0"),
        ("train_dit.precision=fp16", "fp16 needs a GPU"),
        ("train_dit.accumulation=3", "multiple of 3"),
        ("tracking.trackers=[nobody]", "nobody"),
    ],
)
def test_values_that_would_fail_hours_later(
    override: str, words: str, refusal: Callable, tmp_path: Path
) -> None:
    stage = "vae" if override.startswith("train_vae") else "dit"
    assert words in refusal(stage, override)
    assert not list((tmp_path / "runs").rglob("checkpoints"))


def test_a_run_that_must_be_new(refusal: Callable, configure: Callable) -> None:
    (configure().dit_dir / "checkpoints").mkdir(parents=True)
    assert "already holds a run" in refusal("dit", "--resume", "never")


def test_the_time_limit_is_more_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for minutes in ("0", "-1", "nan", "soon"):
        monkeypatch.setattr(sys, "argv", ["train", "--config", "any", "--time-limit", minutes])
        with pytest.raises(SystemExit) as left:
            exit_with_status(train_vae.main)
        assert left.value.code == 2
