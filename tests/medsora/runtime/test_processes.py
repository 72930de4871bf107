"""Processes that are gone, or are not one run, are met with a sentence; see also `tests.faults together`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsora.errors import BadInput, LostProcess
from medsora.runtime import processes
from medsora.runtime.processes import (
    Heartbeat,
    check_agreement,
    check_same_folders,
    in_process_group,
    leave_group,
    on_main,
    reporting_lost_processes,
    share_of,
    start_heartbeat,
)
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
    assert re.search(
        r"a process that loads data died \(.*\); what was saved before is intact", done.stdout
    ), done.stderr


PRINT_THREADS = """
import torch
from medsora.runtime.processes import join_group
join_group()
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="only Linux shows what it was given")
@pytest.mark.parametrize(
    ("variable", "arguments", "cores", "threads"),
    [
        (None, [], 2, 2),
        (None, [], 1, 1),
        ("1", [], 2, 1),
        (None, ["--num_cpu_threads_per_process", "1"], 2, 1),
    ],
    ids=["the launcher's default", "fewer cores than the machine has", "variable", "argument"],
)
def test_a_single_process_of_the_launcher_uses_all_cores_unless_set_otherwise(
    tmp_path: Path, variable: str | None, arguments: list[str], cores: int, threads: int
) -> None:
    script = tmp_path / "print_threads.py"
    script.write_text(PRINT_THREADS, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *arguments, str(script)]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])  # the launcher inherits it
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment | {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": variable} if variable else {}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        os.sched_setaffinity(0, allowed)
    expected = min(threads, len(allowed))
    assert done.stdout.split()[-1:] == [str(expected)], done.stderr


def test_processes_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement({"run folder": "runs/a", "number of clips": 3})
    others = [{"number of clips": 3}, {"number of clips": 4}]
    monkeypatch.setattr(processes, "gather_object", lambda mine: others)
    with pytest.raises(BadInput, match="process 1 has another number of clips than process 0"):
        check_agreement({"number of clips": 3})


def test_a_relative_place_is_another_one_in_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_folders(output="videos")
    here = {"output folder": os.path.abspath("videos")}
    monkeypatch.setattr(processes, "gather_object", lambda mine: [here, *mine])
    check_same_folders(output="videos")
    place = os.path.abspath("videos")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_same_folders(output=place)
    with pytest.raises(BadInput, match=r"another output folder than process 0 .* with absolute paths"):
        check_same_folders(output="videos")


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
    with pytest.raises(RuntimeError, match="out of memory"), reporting_lost_processes():
        raise RuntimeError("out of memory")


def test_shares_are_all_of_the_work_and_none_twice() -> None:
    for group, count in ((1, 5), (3, 10), (4, 2)):
        places = (SimpleNamespace(process_index=k, num_processes=group) for k in range(group))
        shares = [share_of(place, count) for place in places]
        assert sorted(number for share in shares for number in share) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_main_process_works_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    main = SimpleNamespace(is_main_process=True, num_processes=2)
    other = SimpleNamespace(is_main_process=False, num_processes=2)
    messages: list[list] = []
    monkeypatch.setattr(processes, "broadcast_object_list", lambda outcome: messages.append(list(outcome)))
    assert on_main(main, lambda: 7) == 7

    def receive(outcome: list) -> None:
        outcome[:] = messages[-1]

    def refuse() -> None:
        raise ValueError("no such folder")

    monkeypatch.setattr(processes, "broadcast_object_list", receive)
    assert on_main(other, lambda: pytest.fail("it is the main process's work")) == 7
    monkeypatch.setattr(processes, "broadcast_object_list", lambda outcome: messages.append(list(outcome)))
    with pytest.raises(BadInput, match="no such folder"):
        on_main(main, refuse)
    monkeypatch.setattr(processes, "broadcast_object_list", receive)
    with pytest.raises(SystemExit) as left:
        on_main(other, refuse)
    assert left.value.code == 2


def test_who_has_done_its_work_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    beat = Heartbeat(store, rank=0, processes=2, silent_s=processes.BEAT_S)
    other = Heartbeat(store, rank=1, processes=2, silent_s=processes.BEAT_S)
    monkeypatch.setattr(processes, "_heartbeats", [other])
    with in_process_group() as state:
        assert state.num_processes == 1
        assert not other.has_left
    assert other.has_left
    assert processes._heartbeats == []
    assert [beat._silent() for _ in range(5)] == [[]] * 5
    leave_group()  # a second time changes nothing
    other.run()  # ends at once: nobody is listened for any more


ORPHANED = """
import os, time
from medsora.runtime import processes
from tests.medsora.runtime.test_processes import Store
processes.BEAT_S = 0.1
reading, writing = os.pipe()
if os.fork():  # the launcher, or a shell
    os.read(reading, 1)
    os._exit(9)
processes.Heartbeat(Store(), rank=1, processes=2, silent_s=1e9).start()
os.write(writing, b"started")
time.sleep(30 if "TORCHELASTIC_RUN_ID" in os.environ else 1)
print("still there")
"""


@pytest.mark.parametrize("launched", [True, False], ids=["by torchrun", "by hand"])
def test_a_process_without_its_launcher_ends(launched: bool) -> None:
    """Else the other machine's launcher would wait for one that nobody can end."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANED],
        cwd=ROOT,
        env=os.environ | ({"TORCHELASTIC_RUN_ID": "a run"} if launched else {}),
        capture_output=True,  # until the orphan has closed it, too
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 9
    assert ("error: the launcher has ended; what was saved before is intact" in done.stderr) == launched
    assert ("still there" in done.stdout) != launched


def test_the_thread_ends_before_the_interpreter_does() -> None:
    """One that the interpreter meets inside the store ends the process by SIGABRT after its work is done."""
    beat = Heartbeat(Store(), rank=0, processes=2, silent_s=60.0)
    beat.stop()  # before it is started
    beat = Heartbeat(Store(), rank=0, processes=2, silent_s=60.0)
    beat.start()
    assert beat.is_alive()
    beat.stop()
    assert not beat.is_alive()
    assert not beat.has_left


def test_a_single_process_has_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_heartbeats", [])
    start_heartbeat()
    assert processes._heartbeats == []


def test_a_lost_worker_is_distinguished_from_other_errors() -> None:
    with pytest.raises(LostProcess, match="a process that loads data died") as lost, in_process_group():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert not lost.value.reported_elsewhere


@pytest.mark.parametrize(("rank", "speaks"), [(0, True), (2, False)])
def test_silence_ends_the_process_and_one_reports_why(
    rank: int, speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(processes.os, "_exit", leave)
    store = Store()
    beat = Heartbeat(store, rank, processes=3, silent_s=3 * processes.BEAT_S)
    monkeypatch.setattr(beat._leaving, "wait", lambda seconds: store.add(f"beat/{2 - rank}", 1) < 0)
    with pytest.raises(SystemExit) as left:
        beat.run()
    assert left.value.code == 1
    message = "error: process 1 of this run has sent no heartbeat for 6 seconds"
    assert (message in capsys.readouterr().err) == speaks
