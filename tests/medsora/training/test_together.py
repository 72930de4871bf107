"""Processes that are gone, or are not one run, are met with a sentence; see also `tests.faults together`."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from medsora.errors import BadInput, LostProcess
from medsora.training import together
from medsora.training.progress import Progress
from medsora.training.together import Heartbeat, check_agreement, losses_said
from tests.medsora.training import tiny


def test_a_worker_that_dies_ends_the_run_with_a_sentence(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Progress.count

    def count_and_kill(self: Progress, *arguments: object) -> None:
        count(self, *arguments)
        for worker in psutil.Process().children():
            worker.kill()

    monkeypatch.setattr(Progress, "count", count_and_kill)
    config = tiny.tiny_config(tmp_path, clips, data__workers=1, train_vae__max_steps=50)
    with pytest.raises(
        LostProcess, match=r"a process that loads data died \(.*\); what was saved before is whole"
    ):
        tiny.train("vae", config)


def test_processes_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement({"run folder": "runs/a", "number of clips": 3})
    others = [{"number of clips": 3}, {"number of clips": 4}]
    monkeypatch.setattr(together, "gather_object", lambda mine: others)
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
    beat = Heartbeat(store, rank=1, processes=3, silent_s=3 * together.BEAT_S)
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
    beat = Heartbeat(store, rank=1, processes=2, silent_s=3 * together.BEAT_S)
    assert beat.main_is_alive()
    store.gone = True
    assert [beat._silent() for _ in range(4)] == [[], [], [], [0]]
    assert not beat.main_is_alive()


def test_what_is_nobodys_loss_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), losses_said():
        raise RuntimeError("out of memory")
