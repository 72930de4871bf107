"""medsora.training.dry_run.report: `--dry-run` says what a run takes and what it lacks, all of it at once,
and leaves nothing behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small

import train_dit
import train_vae
from medsora.config.load import config_from_dict, load_config, save_config
from medsora.config.schema import VaeTrainingConfig
from medsora.errors import BadInput
from medsora.runtime.exit import exit_with_status
from medsora.training.dry_run import report
from medsora.training.dry_run.report import Findings, count_clips, report_hours
from medsora.training.open_clips import clip_spec
from tests.support import tiny_training as tiny

SCRIPTS = {"vae": train_vae.main, "dit": train_dit.main}


@pytest.fixture
def dry_run(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., tuple[int, str]]:
    """`dry_run(stage, overrides, **changes)`: exit status and what was printed."""
    clips = tiny.write_clips(tmp_path_factory.getbasetemp() / "tiny-clips")
    vae = tiny.write_vae(tmp_path_factory.getbasetemp() / "tiny-vae")
    monkeypatch.chdir(tmp_path)

    def run(stage: str, *overrides: str, **changes) -> tuple[int, str]:
        config = tiny.tiny_config(Path(), clips, **{"vae__path": str(vae)} | changes)
        save_config(config, tmp_path / "config.yaml")
        monkeypatch.setattr(sys, "argv", ["train", "--config", "config.yaml", "--dry-run", *overrides])
        status = 0
        try:
            exit_with_status(SCRIPTS[stage])
        except SystemExit as left:
            status = left.code
        found = capsys.readouterr()
        return status, found.out + found.err

    return run


def size_of(words: list[str]) -> float:
    return float(words[0]) * {"MiB": 1, "GiB": 1024}[words[1]]


def test_hours_follow_from_flops_and_the_precision(capsys: pytest.CaptureFixture) -> None:
    hour = 35.6e12 * 0.25 * 3600  # a quarter of the float32 peak of an RTX 3090
    for settings, expected in (
        ({}, "1 h on an RTX 3090 or 0.531 h on an H200, assuming 25% of the peak of float32"),
        (
            {"matmul_precision": "high"},
            "1 h on an RTX 3090 or 0.072 h on an H200, assuming 25% of the peak of TF32",
        ),
        (
            {"precision": "bf16"},
            "0.501 h on an RTX 3090 or 0.036 h on an H200, assuming 25% of the peak of bf16",
        ),
    ):
        report_hours(Findings(), config_from_dict({"train_dit": settings}, "a test").train_dit, hour)
        assert expected in capsys.readouterr().out


def test_a_tokenizer_of_short_clips_is_ready(dry_run: Callable) -> None:
    status, output = dry_run("vae", **tiny.TOKENIZER, data__frames=2)
    assert status == 0, output
    assert output.rstrip().endswith("ready")


def test_what_is_left_out_and_unlabelled_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    clips = tiny.write_clips(tmp_path / "clips")
    (clips / "empty.mp4").touch()
    (clips / "some.csv").write_text("file,label\nphantom-00000,polyp\n")
    config = tiny.tiny_config(tmp_path, clips, data__labels="some.csv", data__holdout=0.0)
    count_clips(Findings(), config, clip_spec(config), config.vae_dir)
    output = capsys.readouterr().out
    for note in ("left out empty.mp4: ", "no label in some.csv: 4 videos (phantom-00001.mkv, ", "nothing is"):
        assert f"note                   {note}" in output


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_ready(stage: str, dry_run: Callable, tmp_path: Path) -> None:
    status, output = dry_run(stage, cache__latents="disk", cache__prior="disk", train_vae__coarse=0.5)
    assert status == 0, output
    assert output.rstrip().endswith("ready")
    assert "4 to train on, 1 held out" in output
    assert "2 per epoch, 4 in all, on 1 process" in output
    for line in ("parameters", "  optimiser", "  step", "  total", "disk: checkpoints", "disk: free"):
        assert line in output
    assert ("disk: caches" in output) == (stage == "dit")
    if stage == "dit":
        lines = {line[:22].strip(): line[22:].split() for line in output.splitlines()}
        for side in (128, 256):
            small, large = (lines[f"{side} px, batch {batch}"] for batch in (2, 16))
            assert small[2] == large[2] == "yes"  # a tiny model fits 24 GiB
            assert size_of(small) < size_of(large)
        assert size_of(lines["128 px, batch 16"]) < size_of(lines["256 px, batch 16"])
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", "runs"}
    assert [path.parent.name for path in tmp_path.rglob("runs/**/*") if path.is_file()] == [
        "cache"
    ]  # the check


def flops_of(output: str) -> float:
    return float(output.partition("products; ")[2].split()[0])


def test_only_the_steps_that_are_left_count(
    dry_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for counted in ("estimate_denoiser", "step_bytes"):  # memory, which takes longer than the rest
        monkeypatch.setattr(report, counted, mock.MagicMock(**{"return_value.items.return_value": ()}))
    _, new = dry_run("dit", "train_dit.max_steps=4")
    config = load_config(tmp_path / "config.yaml", ["train_dit.max_steps=2"])
    tiny.train("dit", config)
    _, half = dry_run("dit", "train_dit.max_steps=4")
    assert flops_of(half) == pytest.approx(flops_of(new) / 2, rel=0.01)
    assert "\nready\n" in half  # before what training printed
    for steps in (1, 2):
        status, output = dry_run("dit", f"train_dit.max_steps={steps}")
        assert (status, flops_of(output)) == (0, 0)
        assert output.rstrip().endswith("nothing is left to train")


def test_everything_that_is_missing_is_listed(
    dry_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsora.training.run.trackers.find_spec", lambda name: None)
    status, output = dry_run(
        "dit",
        vae__path=str(tmp_path / "no-vae"),
        dino__weights=str(tmp_path / "no-dino"),
        data__root=str(tmp_path / "no-clips"),
        tracking__trackers=["wandb"],
    )
    assert status == 2
    for part in ("stage 1's VAE: ", "the flow prior: ", "the clips: ", "the run: "):
        assert f"\n  {part}" in output, output
    assert "error: 4 of what this run needs is missing or wrong" in output
    assert "ready\n" not in output


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "USUAL_SIDES_PX", (128,))
    monkeypatch.setattr(report, "USUAL_BATCHES", (2,))


def test_raft_is_counted(dry_run: Callable, few_sizes: None, tmp_path: Path) -> None:
    save_file(raft_small(weights=None).state_dict(), tmp_path / "raft.safetensors")
    raft = {"flow__estimator": "raft_small", "flow__weights": str(tmp_path / "raft.safetensors")}
    status, output = dry_run("dit", **raft)
    assert status == 0, output
    assert "\n  128 px, batch 2" in output


@pytest.mark.parametrize("base", [None, "some/hub-name"], ids=["local base", "base of a hub"])
def test_before_stage_1_its_vae_is_the_only_thing_that_estimates_lack(
    base: str | None, dry_run: Callable, few_sizes: None
) -> None:
    changes = {} if base is None else {"vae__base": base, "vae__weights": None}
    status, output = dry_run("dit", vae__path=None, **changes)
    assert status == 2
    assert "error: 1 of what this run needs is missing" in output
    assert "\n  stage 1's VAE: " in output
    assert "note                   without stage 1's VAE, the estimates count one of its arch" in output
    for line in ("  total", "fits 24 GiB", "time ", "disk: checkpoints"):
        assert f"\n{line}" in output, output


def test_a_disk_that_is_too_small(dry_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("medsora.training.dry_run.report.shutil.disk_usage", lambda path: usage)
    status, output = dry_run("vae")
    assert status == 2
    assert "are free" in output


def test_checkpoints_that_are_there_need_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    usage = type("Usage", (), {"free": int(1.5 * mib)})
    monkeypatch.setattr(report.shutil, "disk_usage", lambda path: usage)
    for there in range(5):
        for early_stop, kept in ((None, 2), (3, 3)):
            settings = VaeTrainingConfig(keep=2, early_stop=early_stop)
            with nullcontext() if there >= kept else pytest.raises(BadInput, match="are free"):
                report.check_disk(Findings(), tmp_path, settings, mib, {})
        (tmp_path / "checkpoints" / f"step-{there:07d}").mkdir(parents=True)


def test_for_several_processes(dry_run: Callable) -> None:
    assert "on 2 processes" in dry_run("vae", "--processes", "2")[1]
    status, output = dry_run("vae", "--processes", "4")
    assert status == 2
    assert "multiple of 4" in output
