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


def fail_reads(options: argparse.Namespace) -> int:
    """Fail as many reads as asked, in turn once and for good; print what came; return the exit status."""
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="medsora-reads-"))
    wrong: list[str] = []
    try:
        alone(partial(prepare, work))
        for stage, (main, name) in STAGES.items():
            wrong += _try_stage(stage, main, Path("runs", "tiny", name), work, options.times)
    finally:
        shutil.rmtree(work)
    for sentence in wrong:
        print(sentence)
    print(
        f"failed reads: {options.times * len(STAGES)}; renamed, restarted or lost: {len(wrong) or 'nothing'}"
    )
    return 1 if wrong else 0


def _try_stage(stage: str, main: Callable[[], None], run: Path, work: Path, times: int) -> list[str]:
    """Return what was wrong with the resumes of one stage, a sentence each."""
    straight, half = (configure(work, f"{stage}-{name}", 1, **_often()) for name in ("straight", "half"))
    finish(start_forks(straight, 1, script(main, "--config", "config.yaml")))
    finish(start_forks(half, 1, script(main, "--config", "config.yaml", f"train_{stage}.max_steps=2")))
    whole = _copied(half, f"{stage}-counted")
    finish(start_forks(whole, 1, partial(_resume, main, run, 0, 0, 0)))
    reads = int((whole / "reads.txt").read_text())
    print(f"{stage}: {reads} reads of the run in a resume", flush=True)
    wrong = []
    for number in range(times):
        error, lasts = ERRORS[number % len(ERRORS)], (ONCE, FOR_GOOD)[number % 2]
        first = random.randint(1, reads)
        folder = _copied(half, f"{stage}-{number}")
        before = _tree(folder / run)
        started = start_forks(folder, 1, partial(_resume, main, run, error, first, lasts))
        (status,) = wait(started)
        what = f"{stage}, read {first}, {os.strerror(error)}, {'once' if lasts == ONCE else 'for good'}"
        if lasts == FOR_GOOD:
            errors = re.findall(r"^error: .*$", started.output, re.MULTILINE)
            if status != 2 or len(errors) != 1 or "Traceback" in started.output:
                wrong.append(f"{what}: ended with status {status}: {started.output[-500:]}")
            elif changed := before.items() ^ _tree(folder / run).items():
                wrong.append(f"{what}: changed {sorted({name for name, _ in changed})}")
            finish(started := start_forks(folder, 1, script(main, "--config", "config.yaml")))
        elif status:
            wrong.append(f"{what}: ended with status {status}: {started.output[-500:]}")
            continue
        try:
            tiny.assert_same_run(folder / run, straight / run, STEPS)
        except AssertionError as error:
            wrong.append(f"{what}: ended in something else ({str(error)[:200]})")
        shutil.rmtree(folder)
    return wrong


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
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in SAID_AT_EVERY_START)
    return {str(path.relative_to(run)): path.read_bytes() for path in files}
