"""Processes of one run, forked from one that has imported everything: each costs a second instead of ten."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medsora.training.run.report import RunReport
from tests.support.reserved_port import reserve_port

SURVIVORS_S = 60.0  # how soon the other processes must have stopped when one is killed


@dataclass(frozen=True)
class Started:
    """The processes of a run by rank, their folder, where what they say lies in stderr.txt."""

    pids: list[int]
    folder: Path
    port: socket.socket | None = None  # keeps the port on which they meet

    @property
    def output(self) -> str:
        """What all of them have written to their standard outputs."""
        return (self.folder / "stderr.txt").read_text(errors="replace")


def start_forks(folder: Path, processes: int, main: Callable[[int], None]) -> Started:
    """Fork `processes` processes in `folder`; each calls `main(rank)` as a launcher would have started it."""
    folder.mkdir(exist_ok=True)
    held = reserve_port()
    port, pids = held.getsockname()[1], []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            leave_with(partial(_be, folder, processes, rank, port, main))
        pids.append(pid)
    return Started(pids, folder, held)


def _be(folder: Path, processes: int, rank: int, port: int, main: Callable[[int], None]) -> None:
    os.chdir(folder)
    log = os.open("stderr.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:
        number, count = str(rank), str(processes)
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    main(rank)


def leave_with(main: Callable[[], None]) -> None:
    """End a forked process with the status of `main`, without the parent's exit handlers."""
    status = 1
    try:
        main()
        status = 0
    except SystemExit as left:
        status = left.code or 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def alone(work: Callable[[], None]) -> None:
    """Do `work` in a forked process: this one must stay without threads."""
    pid = os.fork()
    if pid == 0:
        leave_with(work)
    assert os.waitpid(pid, 0)[1] == 0, "preparing failed"


def without_pages() -> None:
    """Let runs of this process draw no pages: these take longer than all else that tiny runs do."""
    RunReport.update = lambda self: None


def wait(started: Started) -> list[int]:
    """Wait for all; return their exit statuses, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started.pids]


def finish(started: Started) -> None:
    """Wait until a run has ended well."""
    statuses = wait(started)
    assert set(statuses) == {0}, f"ended with status {statuses}: {started.output[-2000:]}"


def survivors_leave_within(seconds: float) -> None:
    """Give the other processes so much time to stop when one is killed."""
    global SURVIVORS_S
    SURVIVORS_S = seconds


def wait_for_others(started: Started, first: int) -> tuple[float, list[int]]:
    """Wait for the process of rank `first`, then for the others; return the seconds these took, all statuses.

    One that has not stopped after `SURVIVORS_S` seconds is killed.
    """
    statuses = {first: os.waitstatus_to_exitcode(os.waitpid(started.pids[first], 0)[1])}
    return stop_within(started, statuses)


def stop_within(started: Started, statuses: dict[int, int]) -> tuple[float, list[int]]:
    """Wait for the processes that have no status yet, as `wait_for_others` does."""
    began = time.monotonic()
    while len(statuses) < len(started.pids):
        for rank, pid in enumerate(started.pids):
            if rank in statuses:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                statuses[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - began > SURVIVORS_S:
                kill(pid)
        time.sleep(0.02)
    return time.monotonic() - began, [statuses[rank] for rank in range(len(started.pids))]


def kill(pid: int) -> None:
    """End a process and its descendants by SIGKILL."""
    for process in (*descendants(pid), pid):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended by itself


def descendants(pid: int) -> list[int]:
    """Return the process ids below `pid`, leaves first."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in found.read_text().split()] if found.is_file() else []
    return [below for child in children for below in (*descendants(child), child)]
