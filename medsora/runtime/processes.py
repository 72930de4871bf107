"""Commands without training in several processes: each does its share, the main one decides."""

from __future__ import annotations

import atexit
import datetime
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.environment import parse_flag_from_env
from torch.distributed import DistError, TCPStore

from medsora.errors import BadInput, LostProcess, bad_input_from_errors

Result = TypeVar("Result")

BEAT_S = 2.0
SILENT_S = 45.0
STORE_LIMIT_S = 10.0  # time limit for an answer of the main process
MAX_WAIT = datetime.timedelta(hours=6)  # maximum wait for work that only the main process does
BATCH_TIME_LIMIT_S = 600.0  # for a loader's worker; a slow clip is skipped long before
RERUN = "what was saved before is intact; run the same command to resume"
NETWORK_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "broken pipe")
_heartbeats: list[Heartbeat] = []


@contextmanager
def in_process_group() -> Iterator[PartialState]:
    """Join the processes that a launcher started; inside, they check that none of them has died.

    Yields this process's `PartialState`. A process that has left this context counts as finished. Raises
    `LostProcess` if another one has died.
    """
    with reporting_lost_processes():
        state = join_group()
        start_heartbeat()
        yield state
        leave_group()


def on_main(state: PartialState, work: Callable[[], Result]) -> Result:
    """Return in every process the result, which must pickle, of `work`, which the main one does alone.

    If it fails on bad input, the main process raises `BadInput`; the others leave with its exit status.
    """
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            with bad_input_from_errors():
                outcome[0] = work()
        except BadInput as error:
            outcome[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    result, problem = outcome
    if problem is not None and state.is_main_process:
        raise BadInput(problem)
    if problem is not None:
        sys.exit(2)
    return result


def share_of(state: PartialState, count: int) -> list[int]:
    """Return the numbers below `count` that this process handles: every `num_processes`-th one."""
    return list(range(state.process_index, count, state.num_processes))


class Heartbeat(threading.Thread):
    """One process's thread; `start_heartbeat` makes it."""

    def __init__(self, store: TCPStore, rank: int, processes: int, silent_s: float = SILENT_S) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.store, self.rank, self.silent_s = store, rank, silent_s
        self.beats = {other: (0, 0) for other in range(processes) if other != rank}  # its count, beats missed
        self.has_left = False
        self._leaving = threading.Event()
        # Started by hand, a process may outlive the shell that started it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def run(self) -> None:
        """Send and check heartbeats until another process, or the torchrun that started this one, has ended.

        Then print that and end this process.
        """
        while not (silent := self._silent()) and self._launcher in (None, os.getppid()):
            if self._leaving.wait(BEAT_S):
                return
        if self._leaving.is_set():
            return
        sentence = _lost(silent, self.silent_s) if silent else f"the launcher has ended; {RERUN}."
        if not silent or self.rank == min({self.rank, *self.beats} - set(silent)):
            with suppress(OSError):  # stderr is closed
                print(f"\nerror: {sentence}", file=sys.stderr, flush=True)  # below a bar's line
        os._exit(1)  # the main thread may be waiting in a collective operation that never ends

    def main_is_alive(self) -> bool:
        """Return whether the main process, which keeps the store, can still be reached."""
        try:
            self.store.add(f"beat/{self.rank}", 1)
        except (DistError, RuntimeError):
            return False
        return True

    def stop(self) -> None:
        """End the thread: an interpreter that ends while one is inside the store aborts the process."""
        self._leaving.set()
        if self.is_alive():
            self.join(STORE_LIMIT_S + BEAT_S)

    def leave(self) -> None:
        """Announce that this process has finished, so that its missing heartbeats are no error."""
        self.has_left = True
        self.stop()
        with suppress(DistError, RuntimeError):  # the main process, and its store, may have left before
            self.store.add(f"left/{self.rank}", 1)

    def _silent(self) -> list[int]:
        """Return the processes that sent nothing during too many beats of this one.

        Beats are counted, not seconds, because all processes may have been suspended together.
        """
        try:
            self.store.add(f"beat/{self.rank}", 1)
            for other, (count, missed) in self.beats.items():
                now = self.store.add(f"beat/{other}", 0)
                expected = now == count and self.store.add(f"left/{other}", 0) == 0
                self.beats[other] = (now, missed + 1 if expected else 0)
        except (DistError, RuntimeError):  # the store is the main process's, so that one is gone
            count, missed = self.beats.get(0, (0, 0))
            self.beats[0] = (count, missed + 1)
        return [other for other, (_, missed) in self.beats.items() if missed * BEAT_S > self.silent_s]


def join_group() -> PartialState:
    """Connect to the processes that a launcher started; return this process's `PartialState`.

    Its `device` is a CUDA GPU or another accelerator that PyTorch finds, MPS on a Mac, else the CPU. A single
    process of `accelerate launch` uses all cores, as without the launcher.
    """
    if _launcher_chose_threads():
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=MAX_WAIT)


def _launcher_chose_threads() -> bool:
    """Whether OMP_NUM_THREADS is accelerate's default for a single process instead of the user's choice.

    The default is 1 or, with `--cpu`, the machine's cores, even where the process may use fewer.
    What a user sets is in the launcher's own environment or command line, which Linux shows.
    """
    launched = {"OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    if not launched or os.environ.get("WORLD_SIZE", "1") != "1":
        return False
    with suppress(OSError):
        launcher = Path(f"/proc/{os.getppid()}")
        chosen = (launcher / "environ").read_bytes() + (launcher / "cmdline").read_bytes().replace(b"-", b"_")
        return not any(word in chosen for word in (b"OMP_NUM_THREADS=", b"num_cpu_threads_per_process"))
    return False


def start_heartbeat(silent_s: float = SILENT_S) -> None:
    """Start sending heartbeats and checking those of others; once per process, nothing for a single one."""
    state = PartialState()
    if state.num_processes == 1 or _heartbeats:
        return
    host, limit = os.environ.get("MASTER_ADDR", "localhost"), datetime.timedelta(seconds=STORE_LIMIT_S)
    options = {"timeout": limit, "wait_for_workers": False}
    store = TCPStore(host, 0, is_master=True, **options) if state.is_main_process else None
    (port,) = broadcast_object_list([store.port if store else None])
    store = store or TCPStore(host, port, is_master=False, **options)
    _heartbeats.append(Heartbeat(store, state.process_index, state.num_processes, silent_s))
    _heartbeats[0].start()
    atexit.register(_heartbeats[0].stop)


def leave_group() -> None:
    """End this process's part of the work: from here on its missing heartbeats are no error."""
    while _heartbeats:
        _heartbeats.pop().leave()


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Turn what PyTorch raises when another process or a loader's worker is gone into `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        if sentence := _why_lost(error):
            main_reports_it = any(beat.rank != 0 and beat.main_is_alive() for beat in _heartbeats)
            raise LostProcess(sentence, reported_elsewhere=main_reports_it) from error
        raise


def check_agreement(what: dict[str, Any]) -> None:
    """Raise `BadInput` in every process unless all of them have the same values in `what`."""
    for rank, other in enumerate(gather_object([what])):
        for key, value in what.items():
            if other[key] != value:
                mine = PartialState().process_index
                raise BadInput(
                    f"process {rank} has another {key} than process {mine} ({other[key]} and {value}); "
                    "give all machines the same command, configuration and data, with absolute paths."
                )


def check_same_folders(**folders: str | Path) -> None:
    """Raise `BadInput` in every process unless each of `folders` is one for all of them.

    A path that is not absolute is another one on a machine with another working folder.
    """
    check_agreement({f"{name} folder": os.path.abspath(folder) for name, folder in folders.items()})


def _why_lost(error: RuntimeError) -> str | None:
    text = str(error)
    if "DataLoader worker" in text:
        return f"a process that loads data died ({text.splitlines()[0].rstrip('. ')}); {RERUN}."
    if "DataLoader timed out" in text:
        return f"no batch of data arrived within {BATCH_TIME_LIMIT_S:.0f} seconds; {RERUN}."
    alone = PartialState().num_processes == 1
    if alone or not (isinstance(error, DistError) or any(word in text.lower() for word in NETWORK_WORDS)):
        return None
    reason = re.sub(r"^\[.*?\] ", "", " ".join(text.split())).split(" [")[0].split(". ")[0]
    return f"another process of this run is gone ({reason}); {RERUN}."


def _lost(silent: list[int], seconds: float) -> str:
    who = f"process {silent[0]}" if len(silent) == 1 else f"processes {', '.join(map(str, silent))}"
    return f"{who} of this run has sent no heartbeat for {seconds:.0f} seconds; {RERUN}."
