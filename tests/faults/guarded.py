"""Inputs tried in a forked process with limits on memory and time: a crash or a hang costs one input only."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from medsora.errors import BadInput
from tests.support.paths import ROOT

MEMORY_BYTES = 2**30  # beyond what the process has before its first input
SECONDS_PER_INPUT = 30.0  # of the processor; without any, a process may only have been stopped for a while
PATIENCE = 20
MIN_SENTENCE, MAX_SENTENCE = 20, 10_000  # characters; a value that is quoted may have 5,000
OUR_CODE = tuple(f"{ROOT / name}{os.sep}" for name in ("medsora", "vae", "flow_prior", "kernels"))


@dataclass
class Tally:
    """What came of the inputs: how far each got, and what was not documented."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    largest_growth_bytes: int = 0
    slowest_s: float = 0.0

    @property
    def tried(self) -> int:
        """The number of inputs."""
        return sum(self.outcomes.values())


def try_all(count: int, attempt: Callable[[int], str], *, seconds: float = SECONDS_PER_INPUT) -> Tally:
    """Call `attempt(number)` for 0 to `count` - 1; it returns how far the input got, or raises.

    `ValueError` and `OSError` with a sentence of ours are the documented answers ("refused" unless `attempt`
    says how far it got); everything else, a crash, `seconds` of the processor and memory beyond the limit are
    failures.
    """
    tally, number = Tally(), 0
    while number < count:
        for record in _in_child(number, count, attempt, seconds):
            tally.outcomes[record["outcome"]] += 1
            tally.slowest_s = max(tally.slowest_s, record["seconds"])
            tally.largest_growth_bytes = max(tally.largest_growth_bytes, record["growth"])
            if record["failure"]:
                tally.failures.append(f"input {number}: {record['failure']}")
            number += 1
            _show(number, count, tally)
    return tally


def no_sentence_of_ours(error: Exception) -> str | None:
    """Return why an error is no documented refusal, or None: one clear line that our own code has written.

    What a library raises is none, even where `bad_input_from_errors` passes its words on.
    """
    message, origin = str(error), error
    if isinstance(error, BadInput) and error.__cause__ is not None and str(error.__cause__) == message:
        origin = error.__cause__
    raised_in = traceback.extract_tb(origin.__traceback__)[-1]
    where = f"{raised_in.filename}:{raised_in.lineno}"
    if "\n" in message or not MIN_SENTENCE <= len(message) <= MAX_SENTENCE or message.startswith("[Errno"):
        return f"no clear line, from {where}: {error!r:.300}"
    if not raised_in.filename.startswith(OUR_CODE):
        return f"a library's words, from {where}: {error!r:.300}"
    return None


def report(tally: Tally, past: str, what: str) -> int:
    """Print a tally; outcomes that begin with `past` got past the parser. Return the exit status."""
    got_past = sum(count for outcome, count in tally.outcomes.items() if outcome.startswith(past))
    print(f"{what} tried: {tally.tried}")
    print(f"got past the parser: {got_past} ({got_past / tally.tried:.0%})")
    for outcome, count in tally.outcomes.most_common():
        print(f"  {outcome}: {count}")
    growth = tally.largest_growth_bytes / 2**20
    print(f"slowest: {tally.slowest_s:.1f} s of the processor; memory grew by at most {growth:.0f} MiB")
    print(f"undocumented errors, crashes, hangs: {len(tally.failures)}")
    for failure in tally.failures[:20]:
        print(f"  {failure}")
    return 1 if tally.failures else 0


def _in_child(first: int, count: int, attempt: Callable[[int], str], seconds: float) -> Iterator[dict]:
    """Yield a record for each input that a forked process tries, until it is through or dies."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(first, count, attempt, writing)
    os.close(writing)
    buffer, alive, silent = b"", True, 0
    try:
        while alive:
            used = sum(psutil.Process(pid).cpu_times()[:2])
            ready, _, _ = select.select([reading], [], [], seconds)
            if not ready:
                silent += 1
                if sum(psutil.Process(pid).cpu_times()[:2]) - used < seconds / 2 and silent < PATIENCE:
                    continue
                os.kill(pid, signal.SIGKILL)
                yield _record("hang", seconds, 0, f"no answer within {seconds:.0f} s")
                return
            silent, chunk = 0, os.read(reading, 65536)
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            yield from map(json.loads, lines)
            alive = bool(chunk)
    finally:
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        yield _record("crash", 0.0, 0, f"the process ended with status {status}")


def _work(first: int, count: int, attempt: Callable[[int], str], writing: int) -> None:
    """Try inputs in this forked process and end it."""
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)  # decoders complain about every damaged byte
        gc.freeze()
        limit = _status_bytes("VmSize") + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = _status_bytes("VmHWM")
        for number in range(first, count):
            began, failure = time.process_time(), None
            try:
                outcome = attempt(number)
            except (ValueError, OSError) as error:
                outcome, failure = getattr(error, "how_far", "refused"), no_sentence_of_ours(error)
            except Exception:
                outcome, failure = "undocumented", traceback.format_exc(limit=-6)
            growth = max(_status_bytes("VmHWM") - before, 0)
            line = json.dumps(_record(outcome, time.process_time() - began, growth, failure))
            os.write(writing, line.encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _record(outcome: str, seconds: float, growth: int, failure: str | None) -> dict:
    return {"outcome": outcome, "seconds": seconds, "growth": growth, "failure": failure}


def _status_bytes(name: str) -> int:
    """Return VmSize (address space) or VmHWM (largest resident size) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def _show(number: int, count: int, tally: Tally) -> None:
    if sys.stderr.isatty() and number % 50 == 0:
        print(f"\r{number}/{count}, {len(tally.failures)} failures", end="", file=sys.stderr)
