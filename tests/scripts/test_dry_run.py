"""medsora.training.dry_run.report: `--dry-run` says what a run takes and what it lacks, all of it at once,
and leaves nothing behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train_dit
import train_vae
from medsora.config.load import save_config
from medsora.runtime.exit import exit_with_status
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


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_ready(stage: str, dry_run: Callable, tmp_path: Path) -> None:
    status, said = dry_run(stage, cache__latents="disk", cache__prior="disk", train_vae__coarse=0.5)
    assert status == 0, said
    assert said.rstrip().endswith("ready")
    assert "4 to train on, 1 held out" in said
    assert "2 per epoch, 4 in all, on 1 process(es)" in said
    for line in ("parameters", "  optimiser", "  step", "  total", "disk: checkpoints", "disk: free"):
        assert line in said
    assert ("disk: caches" in said) == (stage == "dit")
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", "runs"}
    assert [path.parent.name for path in tmp_path.rglob("runs/**/*") if path.is_file()] == [
        "cache"
    ]  # the check


def test_everything_that_is_missing_is_listed(
    dry_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsora.training.run.trackers.find_spec", lambda name: None)
    status, said = dry_run(
        "dit",
        vae__path=str(tmp_path / "no-vae"),
        dino__weights=str(tmp_path / "no-dino"),
        data__root=str(tmp_path / "no-clips"),
        tracking__trackers=["wandb"],
    )
    assert status == 2
    for part in ("stage 1's VAE: ", "the flow prior: ", "the clips: ", "the run: "):
        assert f"\n  {part}" in said, said
    assert "error: 4 of what this run needs is missing or wrong" in said
    assert "ready\n" not in said


def test_a_disk_that_is_too_small(dry_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("medsora.training.dry_run.report.shutil.disk_usage", lambda path: usage)
    status, said = dry_run("vae")
    assert status == 2
    assert "are free" in said


def test_for_several_processes(dry_run: Callable) -> None:
    assert "on 2 process(es)" in dry_run("vae", "--processes", "2")[1]
    status, said = dry_run("vae", "--processes", "4")
    assert status == 2
    assert "multiple of 4" in said
