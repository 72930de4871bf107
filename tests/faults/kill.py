"""Training runs killed by SIGKILL and started again: do they end as the run that nobody killed?

A small process imports everything once and forks each run from itself, so that a kill costs a second instead
of ten; with `--commands` the real commands are started instead, under torchrun for several processes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import train_dit
import train_vae
from medsora.config.load import save_config
from medsora.runtime.exit import exit_with_status
from medsora.training.progress import Progress
from tests.faults.places import PLACES
from tests.faults.processes import (
    Started,
    alone,
    finish,
    kill,
    start_forks,
    survivors_leave_within,
    wait,
    wait_for_others,
    without_pages,
)
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT

STEPS = 4
SCRIPTS = {"vae": train_vae.main, "dit": train_dit.main, "dit-cached": train_dit.main}
NOT_IN = {  # places that a stage never comes by
    "vae": ("samples", "cache"),
    "dit": ("cache",),
    "dit-cached": ("fetch",),
}
FIRST_STEP = "first-step"  # the file that holds how many seconds it took


@dataclass(frozen=True)
class Run:
    """One of the harness's runs: which stage, on how many processes, in which folder."""

    stage: str
    processes: int
    folder: Path

    @property
    def outcome(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / "tiny" / ("vae" if self.stage == "vae" else "dit-tiny")


def kill_runs(options: argparse.Namespace) -> int:
    """Kill as often as asked; print a line for each and a summary; return the exit status."""
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # several processes on few cores
    survivors_leave_within(options.within)
    work = Path(tempfile.mkdtemp(prefix="medsora-faults-"))
    launch = start_commands if options.commands else start_forked
    try:
        alone(lambda: _prepare(work))
        straight = []
        for stage in options.stages:
            for processes in options.processes:
                run = Run(stage, processes, work / f"straight-{stage}-{processes}")
                if run not in straight:
                    finish(launch(_configure(run, work)))
                straight.append(run)
        return _report([_trial(number, options, straight, launch, work) for number in range(options.times)])
    finally:
        shutil.rmtree(work)


@dataclass(frozen=True)
class Outcome:
    """What a killed run lost: differences from the straight one (none, if all is well), time to resume."""

    differences: list[str]
    resume_s: float
    others_stopped_s: float | None


def _trial(
    number: int,
    options: argparse.Namespace,
    straight: list[Run],
    launch: Callable,
    work: Path,
) -> Outcome:
    places = ["at a random moment"] if options.commands else options.where or ["at a random moment", *PLACES]
    place = places[number % len(places)]
    passing = [run for run in straight if not any(word in place for word in NOT_IN[run.stage])]
    model = passing[(number + number // len(places)) % len(passing)]
    run = _configure(Run(model.stage, model.processes, work / f"killed-{number}"), work)
    others_stopped_s, wrong = None, []
    if place in PLACES:
        nth = random.randint(1, 2)
        started = launch(run, lambda: PLACES[place](nth))
        others_stopped_s, statuses = wait_for_others(started, 0)
        if statuses[0] != -signal.SIGKILL:
            wrong.append(f"it was not killed but ended with {statuses[0]}")
        if run.processes > 1 and "error: another process of this run is gone" not in started.output:
            wrong.append("the other process did not say why it stopped")
    else:
        started = launch(run)
        time.sleep(random.uniform(0, _duration(model)))
        for pid in started.pids:
            kill(pid)
        wait(started)
    resumed = launch(run)
    try:
        finish(resumed)
        differences = wrong + _differences(run, model)
    except AssertionError as error:
        differences = [*wrong, str(error)]
    noted = run.folder / FIRST_STEP
    resume_s = float(noted.read_text()) if noted.is_file() else 0.0
    what = "the same" if not differences else f"DIFFERENT: {'; '.join(differences)}"
    others = (
        ""
        if others_stopped_s is None or run.processes == 1
        else f", other stopped in {others_stopped_s:.1f} s"
    )
    print(f"{number + 1:3} {run.stage:10} x{run.processes} killed {place}{others}: {what}", flush=True)
    shutil.rmtree(run.folder)
    return Outcome(differences, resume_s, others_stopped_s)


def _report(outcomes: list[Outcome]) -> int:
    lost = [outcome for outcome in outcomes if outcome.differences]
    resumed = sorted(outcome.resume_s for outcome in outcomes if outcome.resume_s)
    stopped = [outcome.others_stopped_s for outcome in outcomes if outcome.others_stopped_s is not None]
    print(f"kills survived: {len(outcomes) - len(lost)} of {len(outcomes)}")
    print(f"lost: {'nothing' if not lost else f'something in {len(lost)} runs'}")
    if resumed:
        middle = resumed[len(resumed) // 2]
        print(f"seconds from the start to the next step: median {middle:.1f}, longest {resumed[-1]:.1f}")
    if stopped:
        print(f"seconds until the other process had stopped: longest {max(stopped):.1f}")
    return 1 if lost else 0


# Preparing and comparing


def _prepare(work: Path) -> None:
    os.chdir(work)
    tiny.write_clips(work / "clips")
    tiny.write_vae(work / "vae")


def _configure(run: Run, work: Path) -> Run:
    run.folder.mkdir()
    cached = {"cache__latents": "disk", "cache__prior": "disk"} if run.stage == "dit-cached" else {}
    often = {"log_every": 3, "eval_every": 2, "save_every": 1, "max_steps": STEPS, "keep": 2}
    both = {f"train_{stage}__{key}": value for stage in ("vae", "dit") for key, value in often.items()}
    config = tiny.tiny_config(
        Path(), work / "clips", vae__path=str(work / "vae"), train_dit__sample_every=2, **both, **cached
    )
    save_config(config, run.folder / "config.yaml")
    return run


def _duration(run: Run) -> float:
    """Return how many seconds a straight run took, from its start to its last file."""
    files = [path.stat().st_mtime for path in run.folder.rglob("*") if path.is_file()]
    return max(files) - (run.folder / "began").stat().st_mtime


def _differences(run: Run, straight: Run) -> list[str]:
    ours, theirs = (tiny.saved_tensors(each.outcome, STEPS) for each in (run, straight))
    found = sorted(ours.keys() ^ theirs.keys())
    found += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if tiny.log_lines(run.outcome) != tiny.log_lines(straight.outcome):
        found.append("log.jsonl")
    for name in (f"checkpoints/step-{STEPS:07d}/state.json", f"samples/step-{STEPS:07d}.png"):
        contents = [(each.outcome / name).read_bytes() for each in (run, straight)]
        if contents[0] != contents[1]:
            found.append(name)
    folders = [sorted(path.name for path in (each.outcome / "samples").iterdir()) for each in (run, straight)]
    whole = [name for name in folders[0] if not name.startswith(".")]
    if whole != folders[1]:
        found.append(f"samples/ holds {whole} instead of {folders[1]}")
    return found


# Starting


def start_forked(run: Run, arm: Callable[[], None] | None = None) -> Started:
    """Fork the run's processes from this one; `arm` is called in the main one before it trains."""
    (run.folder / "began").touch()
    began = time.monotonic()
    (run.folder / FIRST_STEP).unlink(missing_ok=True)

    def train(rank: int) -> None:
        sys.argv = ["train", "--config", "config.yaml"]
        without_pages()
        if rank == 0:
            _note_first_step(run.folder / FIRST_STEP, began)
            if arm is not None:
                arm()
        exit_with_status(SCRIPTS[run.stage])

    return start_forks(run.folder, run.processes, train)


def start_commands(run: Run) -> Started:
    """Start the command that a user would type."""
    (run.folder / "began").touch()
    script = ROOT / f"{SCRIPTS[run.stage].__module__}.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(run.processes)]
    with (run.folder / "stderr.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, *(launcher if run.processes > 1 else []), script, "--config", "config.yaml"],
            cwd=run.folder,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
            stderr=log,
            stdout=log,
        )
    return Started([process.pid], run.folder)


def _note_first_step(path: Path, began: float) -> None:
    count = Progress.count

    def noted(self: Progress, *arguments: object) -> None:
        if not path.exists():
            path.write_text(str(time.monotonic() - began))
        count(self, *arguments)

    Progress.count = noted
