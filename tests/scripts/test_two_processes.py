"""Two CPU processes train both stages together: one set of files, and the gradients of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medsora.config.load import save_config
from medsora.config.schema import Config
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def configure(clips: Path, **changes: Any) -> Config:
    return tiny.tiny_config(
        Path(),
        clips,
        denoiser__overrides={**tiny.DENOISER, "dropout": 0.0},
        train_vae__max_steps=2,
        train_dit__max_steps=2,
        train_dit__save_every=1,
        cache__latents="disk",
        **changes,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes left."""
    work = tmp_path_factory.mktemp("together")
    clips = tiny.write_clips(tmp_path_factory.getbasetemp() / "tiny-clips")
    save_config(configure(clips), work / "config.yaml")
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "tests.support.run_two_processes", "config.yaml", str(work)],
        cwd=work,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (work / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return work


@pytest.mark.parametrize("stage", ["vae", "dit", "image"])
def test_gradients_are_those_of_one_process(
    stage: str, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with a clip each, one with both: equal to 1e-5, with everything awake and no dropout.

    `image` is stage 2 with the image prior, whose trained adapter is called outside the denoiser's forward.
    """
    monkeypatch.chdir(tmp_path)
    config = configure(together.parent / "tiny-clips")
    if stage != "vae":
        shutil.copytree(together / "runs" / "tiny" / "vae", config.vae_dir)
    if stage == "image":
        config.alignment.kind, config.alignment.weight, config.train_dit.max_steps = "image", 0.5, 1
    loop = stage if stage == "vae" else "dit"
    with tiny.nothing_silent(), tiny.first_gradients(loop) as alone:
        run = tiny.train(loop, config)
    if stage != "image":
        one, two = (
            next(line for line in tiny.log_lines(folder) if "loss/total" in line)
            for folder in (run, together / "runs" / "tiny" / run.name)
        )
        for name in (name for name in one if name.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], abs=1e-4), "of both processes, not of the first"
    first, second = (load_file(together / f"{stage}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys()
    assert alone.get("adapter.weight", torch.zeros(1)).any() == (stage == "image")
    assert sum(bool(gradient.any()) for gradient in alone.values()) > 0.9 * len(alone)
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=0, atol=1e-5)


def test_codes_are_revived_as_by_one_process(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clips = together.parent / "tiny-clips"
    alone = tiny.train("vae", configure(clips, **tiny.TOKENIZER))
    saved = Path("checkpoints") / "step-0000002"
    runs = [alone / saved, together / "runs" / "tokenizer" / "vae" / saved]
    states = [json.loads((run / "state.json").read_text())["last_used"] for run in runs]
    assert states[0] == states[1]
    first, second = (load_file(run / "vae" / "diffusion_pytorch_model.safetensors") for run in runs)
    codebook = "base.quantize.embedding.weight"
    torch.testing.assert_close(second[codebook], first[codebook], rtol=0, atol=5e-3)


def test_one_set_of_files(together: Path) -> None:
    runs = together / "runs" / "tiny"
    for run in (runs / "vae", runs / "dit-tiny"):
        steps = [line["step"] for line in tiny.log_lines(run) if "loss/total" in line]
        assert steps == [1, 2]
        names = {path.name for path in (run / "checkpoints").iterdir()}
        assert names - {"damaged-step-0000002"} <= {"step-0000001", "step-0000002"}
        assert "step-0000002" in names
    assert (runs / "vae" / "final" / "config.json").is_file()
    assert (runs / "dit-tiny" / "samples" / "step-0000002.png").is_file()
    assert [path for path in runs.rglob(".*")] == []


def test_both_take_the_same_checkpoint_when_the_newest_is_damaged(together: Path) -> None:
    output = (together / "runs" / "tiny" / "dit-tiny" / "messages.txt").read_text()
    assert output.count("is damaged") == 1
    assert output.count("resuming after step 1 of 2") == 1


def test_a_loss_that_is_not_finite_in_one_process_stops_both(together: Path) -> None:
    first, second = ((together / f"non-finite-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "the loss became nan at step 0 on phantom-" in first
    assert first.count("(timestep ") == 1  # the clip of process 1 alone
