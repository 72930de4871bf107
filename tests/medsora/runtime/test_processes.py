"""Processes that are gone, or are not one run, are met with a sentence; see also `tests.faults together`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medsora.errors import BadInput
from medsora.runtime import processes
from medsora.runtime.processes import Heartbeat, check_agreement, losses_said
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

TRAIN_AND_KILL_WORKERS = """
import sys
from pathlib import Path
import psutil
from medsora.errors import LostProcess
from medsora.training.progress import Progress
from tests.support import tiny_training as tiny

count = Progress.count

def count_and_kill(self, *arguments):
    count(self, *arguments)
    for worker in psutil.Process().children():
        worker.kill()

Progress.count = count_and_kill
config = tiny.tiny_config(Path(sys.argv[1]), Path(sys.argv[2]), data__workers=1, train_vae__max_steps=50)
try:
    tiny.train("vae", config)
except LostProcess as error:
    print(error)
"""


def test_a_worker_that_dies_ends_the_run_with_a_sentence(clips: Path, tmp_path: Path) -> None:
    """In a process of its own: PyTorch tells of a dead worker by a signal, which may come a test too late."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_KILL_WORKERS, tmp_path, clips],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert re.search(r"a process that loads data died \(.*\); what was saved before is whole", done.stdout), (
        done.stderr
    )


def test_processes_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement({"run folder": "runs/a", "number of clips": 3})
    others = [{"number of clips": 3}, {"number of clips": 4}]
    monkeypatch.setattr(processes, "gather_object", lambda mine: others)
    with pytest.raises(BadInput, match="process 1 has another number of clips than process 0"):
        check_agreement({"number of clips": 3})


class Store:
    """A store of counts that other processes would share; `gone` makes it unreachable."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.gone = False

    def add(self, key: str, amount: int) -> int:
        if self.gone:
            raise RuntimeError("connection refused")
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


def test_who_is_silent_for_too_many_beats_is_found() -> None:
    store = Store()
    beat = Heartbeat(store, rank=1, processes=3, silent_s=3 * processes.BEAT_S)
    for _ in range(10):
        store.add("beat/0", 1)
        store.add("beat/2", 1)
        assert beat._silent() == []
    for _ in range(3):
        store.add("beat/0", 1)
        assert beat._silent() == []
    store.add("beat/0", 1)
    assert beat._silent() == [2]


def test_a_store_that_is_gone_means_the_main_process_is() -> None:
    store = Store()
    beat = Heartbeat(store, rank=1, processes=2, silent_s=3 * processes.BEAT_S)
    assert beat.main_is_alive()
    store.gone = True
    assert [beat._silent() for _ in range(4)] == [[], [], [], [0]]
    assert not beat.main_is_alive()


def test_what_is_nobodys_loss_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), losses_said():
        raise RuntimeError("out of memory")
