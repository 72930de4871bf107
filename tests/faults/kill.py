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
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import train_dit
import train_vae
from medsora.config_file import save_config
from medsora.errors import exit_with_status
from medsora.training.progress import Progress
from tests.faults.places import PLACES
from tests.medsora.training import tiny

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
SCRIPTS = {"vae": train_vae.main, "dit": train_dit.main, "dit-cached": train_dit.main}
NOT_IN = {  # places that a stage never comes by
    "vae": ("samples", "cache"),
    "dit": ("cache",),
    "dit-cached": ("fetch",),
}
SURVIVORS_S = 60.0  # how soon the other processes must have stopped when one is killed


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


@dataclass
class Started:
    """The processes of a run, and where the first of them notes when its first step was done."""

    pids: list[int]
    began: float
    first_step: Path


def kill_runs(options: argparse.Namespace) -> int:
    """Kill as often as asked; print a line for each and a summary; return the exit status."""
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # several processes on few cores
    work = Path(tempfile.mkdtemp(prefix="medsora-faults-"))
    launch = start_commands if options.commands else start_forks
    try:
        _alone(lambda: _prepare(work))
        straight = {}
        for stage in options.stages:
            for processes in options.processes:
                run = _configure(Run(stage, processes, work / f"straight-{stage}-{processes}"), work)
                _finish(launch(run))
                straight[stage, processes] = run
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
    straight: dict[tuple[str, int], Run],
    launch: Callable,
    work: Path,
) -> Outcome:
    model = list(straight.values())[number % len(straight)]
    places = [
        name
        for name in options.where or ["at a random moment", *PLACES]
        if not any(word in name for word in NOT_IN[model.stage])
    ]
    place = "at a random moment" if options.commands else places[number // len(straight) % len(places)]
    run = _configure(Run(model.stage, model.processes, work / f"killed-{number}"), work)
    others_stopped_s = None
    if place in PLACES:
        nth = random.randint(1, 2)
        started = launch(run, lambda: PLACES[place](nth))
        others_stopped_s = _wait_for_others(started)
    else:
        started = launch(run)
        time.sleep(random.uniform(0, _duration(model)))
        for pid in started.pids:
            _kill(pid)
        _wait(started)
    resumed = launch(run)
    try:
        _finish(resumed)
        differences = _differences(run, model)
    except AssertionError as error:
        differences = [str(error)]
    resume_s = float(resumed.first_step.read_text()) if resumed.first_step.is_file() else 0.0
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
    often = {"log_every": 3, "eval_every": 2, "save_every": 2, "max_steps": STEPS, "keep": 2}
    both = {f"train_{stage}__{key}": value for stage in ("vae", "dit") for key, value in often.items()}
    config = tiny.tiny_config(
        Path(), work / "clips", vae__path=str(work / "vae"), train_dit__sample_every=3, **both, **cached
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
    if tiny.figures(run.outcome) != tiny.figures(straight.outcome):
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


# Processes


def start_forks(run: Run, arm: Callable[[], None] | None = None) -> Started:
    """Fork the run's processes from this one; `arm` is called in the main one before it trains."""
    (run.folder / "began").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began, first_step = time.monotonic(), run.folder / "first-step"
    first_step.unlink(missing_ok=True)
    pids = []
    for rank in range(run.processes):
        pid = os.fork()
        if pid == 0:
            _leave_with(partial(_train, run, rank, port, partial(_note_first_step, first_step, began), arm))
        pids.append(pid)
    return Started(pids, began, first_step)


def start_commands(run: Run) -> Started:
    """Start the command that a user would type, in a session of its own."""
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
    return Started([process.pid], time.monotonic(), run.folder / "first-step")


def _train(run: Run, rank: int, port: int, note: Callable[[], None], arm: Callable[[], None] | None) -> None:
    """Be one process of a run, from the command line to the exit status."""
    _become(run, rank, port)
    if rank == 0:
        note()
        if arm is not None:
            arm()
    exit_with_status(SCRIPTS[run.stage])


def _become(run: Run, rank: int, port: int) -> None:
    """Make this forked process one of a run's, as a launcher would have started it."""
    os.chdir(run.folder)
    log = os.open("stderr.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if run.processes > 1:
        number, count = str(rank), str(run.processes)
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["train", "--config", "config.yaml"]


def _note_first_step(path: Path, began: float) -> None:
    count = Progress.count

    def noted(self: Progress, *arguments: object) -> None:
        if not path.exists():
            path.write_text(str(time.monotonic() - began))
        count(self, *arguments)

    Progress.count = noted


def _leave_with(main: Callable[[], None]) -> None:
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


def _alone(work: Callable[[], None]) -> None:
    """Do `work` in a forked process: this one must stay without threads."""
    pid = os.fork()
    if pid == 0:
        _leave_with(work)
    assert os.waitpid(pid, 0)[1] == 0, "preparing failed"


def _finish(started: Started) -> None:
    """Wait until a run has ended well."""
    statuses = _wait(started)
    log = (started.first_step.parent / "stderr.txt").read_text(errors="replace")
    assert set(statuses) == {0}, f"ended with status {statuses}: {log[-2000:]}"


def _wait(started: Started) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started.pids]


def _wait_for_others(started: Started) -> float:
    """Wait for the main process, which kills itself, then for the others; return the seconds they took."""
    main, *others = started.pids
    os.waitpid(main, 0)
    began, left = time.monotonic(), set(others)
    while left:
        for pid in list(left):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.remove(pid)
            elif time.monotonic() - began > SURVIVORS_S:
                _kill(pid)
        time.sleep(0.02)
    return time.monotonic() - began


def _kill(pid: int) -> None:
    for process in (*_children(pid), pid):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended by itself


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in found.read_text().split()] if found.is_file() else []
    return [descendant for child in children for descendant in (*_children(child), child)]
