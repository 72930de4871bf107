"""Reads that fail while a run is resumed: once, and the run continues; for good, and nothing is touched."""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import train_dit
import train_vae
from medsora.runtime.exit import exit_with_status
from medsora.training.progress import Progress
from tests.faults.processes import alone, finish, start_forks, wait, without_pages
from tests.faults.scenarios import configure, prepare, script
from tests.support import tiny_training as tiny
from tests.support.disk.failing_reads import ERRORS, failing_reads

STAGES = {"vae": (train_vae.main, "vae"), "dit": (train_dit.main, "dit-tiny")}
STEPS = 4
SAID_AT_EVERY_START = {"command.txt", "config.yaml", "lock.txt", "messages.txt", "versions.json"}
ONCE, FOR_GOOD = 1, 10**6
CONTINUED = 10  # tries after which an unchanged folder is known to be resumed


def fail_reads(options: argparse.Namespace) -> int:
    """Fail as many reads as asked, in turn once and for good; print what came; return the exit status."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="medsora-reads-"))
    tried = faults = 0
    try:
        alone(partial(prepare, work))
        for stage in options.stages:
            main, name = STAGES[stage]
            number, wrong = _try_stage(stage, main, Path("runs", "tiny", name), work, options)
            tried, faults = tried + number, faults + wrong
    finally:
        shutil.rmtree(work)
    print(f"failed reads: {tried}; renamed, restarted or lost: {faults or 'nothing'}")
    return 1 if faults else 0


def _try_stage(
    stage: str, main: Callable[[], None], run: Path, work: Path, options: argparse.Namespace
) -> tuple[int, int]:
    """Return how many reads failed in resumes of one stage, and the number of faults, each printed."""
    straight, half = (configure(work, f"{stage}-{name}", 1, **_often()) for name in ("straight", "half"))
    finish(start_forks(straight, 1, script(main, "--config", "config.yaml")))
    finish(start_forks(half, 1, script(main, "--config", "config.yaml", f"train_{stage}.max_steps=2")))
    whole = _copied(half, f"{stage}-counted")
    finish(start_forks(whole, 1, partial(_resume, main, run, 0, 0, 0)))
    reads = int((whole / "reads.txt").read_text())
    tries = options.times or options.rounds * reads
    print(f"{stage}: {reads} reads of the run in a resume, {tries} tries", flush=True)
    order, faults = random.Random(options.seed).sample(range(1, reads + 1), reads), 0
    for number in range(tries):
        wrong: list[str] = []
        turn, place = divmod(number, reads)
        first, error = order[place], ERRORS[(place + turn) % len(ERRORS)]
        lasts = (ONCE, FOR_GOOD)[(place + turn) % 2]
        folder = _copied(half, f"{stage}-{number}")
        before = _tree(folder / run)
        started = start_forks(folder, 1, partial(_resume, main, run, error, first, lasts))
        (status,) = wait(started)
        what = f"{stage}, read {first}, {os.strerror(error)}, {'once' if lasts == ONCE else 'for good'}"
        if lasts == FOR_GOOD:
            errors = re.findall(r"^error: .*$", started.output, re.MULTILINE)
            if status != 2 or len(errors) != 1 or "Traceback" in started.output:
                wrong.append(f"{what}: ended with status {status}: {started.output[-500:]}")
            if changed := before.items() ^ _tree(folder / run).items():
                wrong.append(f"{what}: changed {sorted({name for name, _ in changed})}")
            if number < CONTINUED:
                finish(start_forks(folder, 1, script(main, "--config", "config.yaml")))
                wrong += _other_than(straight / run, folder / run, what)
        elif status:
            wrong.append(f"{what}: ended with status {status}: {started.output[-500:]}")
        else:
            wrong += _other_than(straight / run, folder / run, what)
        shutil.rmtree(folder)
        for sentence in wrong:
            print(sentence, flush=True)
        faults += len(wrong)
    return tries, faults


def _other_than(straight: Path, run: Path, what: str) -> list[str]:
    try:
        tiny.assert_same_run(run, straight, STEPS)
    except AssertionError as error:
        return [f"{what}: ended in something else ({str(error)[:200]})"]
    return []


def _often() -> dict[str, int]:
    return {
        f"train_{stage}__{key}": value for stage in STAGES for key, value in (("save_every", 1), ("keep", 3))
    }


def _resume(main: Callable[[], None], run: Path, error: int, first: int, times: int, rank: int) -> None:
    """Resume while reads of the run folder fail, until the first step is taken."""
    sys.argv = ["train", "--config", "config.yaml"]
    without_pages()
    count = Progress.count
    with failing_reads(Path.cwd() / run, error, first, times) as reads:

        def counted(self: Progress, *arguments: object) -> None:
            Path("reads.txt").exists() or Path("reads.txt").write_text(str(reads.count))
            reads.failing = range(0)
            count(self, *arguments)

        Progress.count = counted
        exit_with_status(main)


def _copied(half: Path, name: str) -> Path:
    return Path(shutil.copytree(half, half.with_name(name)))


def _tree(run: Path) -> dict[str, bytes]:
    """Return a run's files without those that every start writes, and without unfinished (hidden) ones."""
    files = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if not any(part[0] == "." for part in name.parts)}
    return {
        str(name): path.read_bytes() for name, path in kept.items() if path.name not in SAID_AT_EVERY_START
    }
