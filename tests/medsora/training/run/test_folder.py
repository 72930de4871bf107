"""medsora.training.run.folder: what is left of a damaged log, and runs that have lost their checkpoints."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from medsora.config.schema import Config
from medsora.errors import BadInput
from medsora.saved.checkpoint import save_checkpoint
from medsora.training.run import folder
from medsora.training.run.folder import ELAPSED, RunFolder, read_log, with_compensation_kind
from tests.support.disk.failing_reads import failing_reads

DAMAGE = (  # one line each
    b'{"step": 2, "loss/tot',
    b'{"step": 2} trailing',
    b"\xff\xfe\x00",
    b"[1, 2]",
    b"7",
    b"{}",
    b'{"step": "2"}',
    b'{"step": -2}',
    b'{"step": true}',
    b'{"step": 2, "loss/total": "low"}',
    b'{"step": 2, "loss/total": ' + b"9" * 400 + b"}",
    b'{"step": 1e999}',
    b"[" * 100_000,
    b"",
)


def open_run(path: Path, batch: int = 1) -> RunFolder:
    config = with_compensation_kind(Config())
    config.train_vae.batch = batch
    return RunFolder(path, config, "train_vae", SimpleNamespace(is_main_process=True, num_processes=1))


def save(run: RunFolder, step: int) -> None:
    save_checkpoint(run.checkpoints, step, lambda folder: None, {}, {}, keep=2)
    run.note_saved()


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_of_the_log_costs_that_line_only(damage: bytes, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    lines = [json.dumps({"step": step, "loss/total": 1.0 / step}) for step in (1, 2, 3, 4)]
    texts = [line.encode() for line in lines]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([texts[0], damage, *texts[1:]]) + b"\n")
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    assert run.has_logged(4, "loss/")
    save(run, 3)
    assert run.newest_checkpoint().step == 3
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:3]


def test_the_elapsed_time_begins_with_the_run_s_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(folder, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=None))
    run = open_run(tmp_path)
    run.accelerator.log = lambda *_, **__: None
    now_s = 30.0
    run.restart_clock()
    now_s = 40.0
    run.log(1, {"loss/total": 1.0})
    assert [line[ELAPSED] for line in read_log(tmp_path)] == [10.0], "without building the models"


def test_a_run_whose_checkpoints_are_not_there_is_not_begun_anew(tmp_path: Path) -> None:
    """As on a machine where the disk that they lie on is not mounted."""
    run = open_run(tmp_path)
    save(run, 3)
    run._lock.close()
    (tmp_path / "log.jsonl").write_text('{"step": 3}\n')
    away = tmp_path.with_name("away")
    shutil.move(tmp_path / "checkpoints", away)
    for there in (lambda: None, (tmp_path / "checkpoints").mkdir):
        there()
        with pytest.raises(BadInput, match=r"had checkpoints but .* holds none now"):
            open_run(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    shutil.move(away, tmp_path / "checkpoints")
    assert open_run(tmp_path).newest_checkpoint().step == 3
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3}\n'


def test_settings_are_compared_with_a_run_that_ended_while_its_folder_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was interrupted, and wrote its first checkpoint just now."""
    hold = folder.hold_folder

    def wait(path: Path) -> TextIO:
        monkeypatch.setattr(folder, "hold_folder", hold)
        save(run := open_run(path), 3)
        run._lock.close()
        return hold(path)

    monkeypatch.setattr(folder, "hold_folder", wait)
    with pytest.raises(BadInput, match=r"train_vae\.batch=1, but now it is 2"):
        open_run(tmp_path, batch=2)


def test_a_read_that_fails_once_keeps_no_run_from_opening_its_folder(tmp_path: Path) -> None:
    def open_again(first: int) -> int:
        with failing_reads(tmp_path.parent, errno.ETIMEDOUT, first, times=1) as reads:
            open_run(tmp_path)._lock.close()
        return reads.count

    save(run := open_run(tmp_path), 3)
    run._lock.close()
    for first in range(1, open_again(0) + 1):
        open_again(first)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-0000003"]


def test_a_changed_digit_of_the_log_costs_its_line(tmp_path: Path) -> None:
    """Early stopping and studies read it."""
    run = open_run(tmp_path)
    run.accelerator.log = lambda metrics, step: None
    for step in (1, 2):
        run.log(step, {"held_out/mse": 0.25})
    path = tmp_path / "log.jsonl"
    assert [line["held_out/mse"] for line in read_log(tmp_path)] == [0.25, 0.25]
    path.write_text(path.read_text().replace("0.25", "0.35", 1))
    assert [line["step"] for line in read_log(tmp_path)] == [2]
