"""Several processes as one run: every script, uneven data, processes that die, hang or disagree."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import evaluate
import sample_ddim
import train_dit
import train_vae
from medsora.config.load import save_config
from medsora.runtime import processes as training_processes
from medsora.runtime.exit import exit_with_status
from medsora.runtime.processes import start_heartbeat
from medsora.training import batches as setup
from medsora.training import fill_caches as cache
from medsora.training.schedule import SampleKey
from medsora.training.stage2.samples import Stage2Samples
from tests.faults.processes import (
    alone,
    finish,
    start_forks,
    stop_within,
    survivors_leave_within,
    wait,
    wait_for_others,
    without_pages,
)
from tests.faults.troubles import after_a_batch, after_a_step, die, freeze, kill_worker, troubled
from tests.support import tiny_training as tiny
from tests.support.patience import PATIENCE_S

SILENT_S = 10.0  # instead of the real limit, which nobody wants to wait for here
CLIPS = 5  # no multiple of any batch: epochs end unevenly
CACHED = ("cache.latents=disk", "cache.prior=disk")


def try_together(options: argparse.Namespace) -> int:
    """Try every scenario, or those named; print a line for each; return the exit status."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    survivors_leave_within(options.within)
    work = Path(tempfile.mkdtemp(prefix="medsora-together-"))
    failed = 0
    try:
        alone(partial(prepare, work))
        for name in options.only or SCENARIOS:
            try:
                output = SCENARIOS[name](work, options.processes)
            except AssertionError as error:
                failed, output = failed + 1, f"FAILED: {error}"
            print(f"{name}, {options.processes} processes: {output}", flush=True)
    finally:
        shutil.rmtree(work)
    return 1 if failed else 0


def prepare(work: Path) -> None:
    """Write the clips and the VAE that all runs use."""
    os.chdir(work)
    tiny.write_clips(work / "clips")
    tiny.write_vae(work / "vae")


def configure(work: Path, name: str, processes: int, **changes: Any) -> Path:
    """Return a new folder with the config of a run of so many processes."""
    folder = work / name
    folder.mkdir(exist_ok=True)
    settings = {"vae__path": str(work / "vae"), "data__holdout": 0.0, "train_vae__batch": processes}
    settings["train_dit__phases"] = [{"lr": 1e-3, "batch": processes}]
    save_config(tiny.tiny_config(Path(), work / "clips", **settings | changes), folder / "config.yaml")
    return folder


def script(main: Callable[[], None], *arguments: str) -> Callable[[int], None]:
    """Return what each process does: run a script with its command line."""

    def run(rank: int) -> None:
        sys.argv = ["script", *arguments]
        without_pages()
        exit_with_status(main)
        Path(f"world-{rank}.txt").write_text(str(PartialState().num_processes))

    return run


def _train(main: Callable[[], None] = train_dit.main, *overrides: str) -> Callable[[int], None]:
    return script(main, "--config", "config.yaml", *overrides)


def _evaluate(work: Path, *arguments: str) -> Callable[[int], None]:
    sizes = ("--frames", "8", "--size", "32", "--clips", "8", "--batch-size", "1", "--metrics", "motion")
    return script(evaluate.main, "--real", str(work / "clips"), "--out", "results", *sizes, *arguments)


def _finish(folder: Path, processes: int, main: Callable[[int], None]) -> None:
    """Run to the end; fails unless the processes were as many as that, and found each other."""
    for path in folder.glob("world-*.txt"):
        path.unlink()
    finish(start_forks(folder, processes, main))
    sizes = [path.read_text() for path in folder.glob("world-*.txt")]
    assert sizes == [str(processes)] * processes, sizes


# Scenarios: each returns what it saw, or fails by an assertion


def every_script(work: Path, processes: int) -> str:
    """Both stages, sampling and evaluation: all processes take part, one writes."""
    folder = configure(work, "scripts", processes, vae__path=None)
    run = folder / "runs" / "tiny"
    _finish(folder, processes, _train(train_vae.main))
    _finish(folder, processes, _train(cache.main, *CACHED))
    entries = {path.stem for path in (folder / "cache").rglob("*.safetensors")}
    assert len([name for name in entries if name.startswith("clip-")]) >= CLIPS, entries
    _finish(folder, processes, _train(train_dit.main, *CACHED))
    for stage in ("vae", "dit-tiny"):
        states = sorted((run / stage / "checkpoints").glob("step-*/state.json"))
        assert {json.loads(path.read_text())["processes"] for path in states} == {processes}
        steps = [line["step"] for line in tiny.log_lines(run / stage) if "loss/total" in line]
        assert steps == [1, 2, 3, 4], steps
    model, videos = str(run / "dit-tiny"), str(processes + 1)
    sampling = ("--model", model, "--out", "videos", "--num-videos", videos, "--steps", "2")
    _finish(folder, processes, script(sample_ddim.main, *sampling))
    manifest = json.loads((folder / "videos" / "manifest.json").read_text())
    assert manifest["processes"] == processes, manifest
    assert len(list((folder / "videos").glob("video-*.mp4"))) == processes + 1
    _finish(folder, processes, _evaluate(work, "--fake", "videos"))
    assert list((folder / "results").glob("*.json")), "no results"
    assert not list(folder.rglob(".*")), "something unfinished is left"
    return "train_vae, cache, train_dit, sample_ddim and evaluate ran, one process wrote"


def uneven_epochs(work: Path, processes: int) -> str:
    """Five clips in batches of `processes`: every clip once in every epoch, over all processes."""
    epochs = 4
    folder = configure(work, "uneven", processes, train_dit__epochs=epochs, train_dit__max_steps=None)
    seen = _seen_samples(folder, processes, _train())
    first_missing = (max(number for number, *_ in seen) + 1) // CLIPS * CLIPS
    counts = Counter((epoch, index) for number, epoch, index in seen if number < first_missing)
    assert set(counts.values()) == {1}, f"a clip came twice in an epoch: {counts}"
    assert len(counts) >= epochs * CLIPS, "a clip was left out"
    return f"{CLIPS} clips in batches of {processes}: each exactly once in each of {epochs} epochs"


def another_number(work: Path, processes: int) -> str:
    """A run resumes with half as many processes: reported, and with no sample twice or never."""
    folder = configure(work, "fewer", processes)
    before = _seen_samples(folder, processes, _train(train_dit.main, "train_dit.max_steps=2"))
    after = _seen_samples(folder, processes // 2, _train())
    output = (folder / "runs" / "tiny" / "dit-tiny" / "messages.txt").read_text()
    assert f"the number of processes was {processes} and is {processes // 2}" in output, output
    numbers = sorted(number for number, *_ in before + after)
    assert numbers == list(range(4 * processes)), numbers
    return f"resumed with {processes // 2}, which is announced; every sample came once"


def a_process_dies(work: Path, processes: int) -> str:
    """The last process is killed in a step: the others stop and one says why."""
    folder, last = configure(work, "dies", processes), processes - 1
    started = start_forks(folder, processes, troubled(_train(), last, partial(after_a_step, die)))
    seconds, statuses = wait_for_others(started, last)
    others = statuses[:-1]
    assert set(others) == {1}, f"statuses {statuses}: {started.output[-2000:]}"
    return f"the others stopped after {seconds:.1f} s: {_sentence(started.output)}"


def a_process_hangs(work: Path, processes: int) -> str:
    """The last process is stopped in a step and never answers again: the others end themselves."""
    folder, last = configure(work, "hangs", processes), processes - 1

    def impatient(rank: int) -> None:
        setup.start_heartbeat = partial(start_heartbeat, SILENT_S)
        troubled(_train(), last, partial(after_a_step, freeze))(rank)

    started = start_forks(folder, processes, impatient)
    seconds, statuses = _others_stop(started, last)
    assert set(statuses[:-1]) == {1}, f"statuses {statuses}: {started.output[-2000:]}"
    limit = f"with a limit of {SILENT_S:.0f} s"
    return f"{limit} the others stopped after {seconds:.1f} s: {_sentence(started.output)}"


def a_worker_dies(work: Path, processes: int) -> str:
    """The process that loads data for the main one is killed: all stop and one says why."""
    folder = configure(work, "worker", processes, data__workers=1, train_dit__max_steps=50)
    started = start_forks(folder, processes, troubled(_train(), 0, partial(after_a_step, kill_worker)))
    seconds, statuses = wait_for_others(started, 0)
    assert statuses[0] == 1, f"statuses {statuses}: {started.output[-2000:]}"
    assert "a process that loads data died" in started.output, started.output[-2000:]
    return f"the others stopped after {seconds:.1f} s: {_sentence(started.output)}"


def an_evaluation_loses_a_process(work: Path, processes: int) -> str:
    """The last process is killed while it extracts: the others stop; what is extracted is used again."""
    folder, last = configure(work, "evaluation", processes), processes - 1
    evaluation = _evaluate(work, "--fake", str(work / "clips"))
    started = start_forks(folder, processes, troubled(evaluation, last, partial(after_a_batch, die)))
    seconds, statuses = wait_for_others(started, last)
    assert set(statuses[:-1]) == {1}, f"statuses {statuses}: {started.output[-2000:]}"
    sentence = _sentence(started.output)
    _finish(folder, processes, evaluation)
    assert "are there from an interrupted run" in started.output, started.output[-2000:]
    return f"the others stopped after {seconds:.1f} s: {sentence}"


def an_evaluation_is_interrupted(work: Path, processes: int) -> str:
    """All processes are told to end while they extract: status 75 and one sentence, no traceback."""
    folder = configure(work, "interrupted", processes)
    evaluation = _evaluate(work, "--fake", str(work / "clips"))

    def expect_interruption(rank: int) -> None:
        # The first to leave sends no more heartbeats: that must not end the others before they are told.
        training_processes.start_heartbeat = partial(start_heartbeat, PATIENCE_S)
        after_a_batch(lambda: os.kill(os.getpid(), signal.SIGTERM))
        evaluation(rank)

    started = start_forks(folder, processes, expect_interruption)
    statuses = wait(started)
    assert set(statuses) == {75}, f"statuses {statuses}: {started.output[-2000:]}"
    assert started.output.count("interrupted: received SIGTERM") == 1, started.output[-2000:]
    assert "Traceback" not in started.output, started.output[-2000:]
    return "status 75 and one sentence"


def they_disagree(work: Path, processes: int) -> str:
    """One process has another configuration: refused before anything is trained."""
    folder = configure(work, "disagree", processes)

    def main(rank: int) -> None:
        _train(train_dit.main, *(["train_dit.weight_decay=0.5"] if rank == processes - 1 else []))(rank)

    started = start_forks(folder, processes, main)
    statuses = wait(started)
    assert set(statuses) == {2}, f"statuses {statuses}: {started.output[-2000:]}"
    return _sentence(started.output)


SCENARIOS: dict[str, Callable[[Path, int], str]] = {
    "every-script": every_script,
    "uneven-epochs": uneven_epochs,
    "another-number": another_number,
    "process-dies": a_process_dies,
    "process-hangs": a_process_hangs,
    "worker-dies": a_worker_dies,
    "evaluation-dies": an_evaluation_loses_a_process,
    "evaluation-interrupted": an_evaluation_is_interrupted,
    "disagree": they_disagree,
}


def _others_stop(started: Any, frozen: int) -> tuple[float, list[int]]:
    """Wait until one process is frozen, then for the others; return the seconds these took, all statuses."""
    os.waitpid(started.pids[frozen], os.WUNTRACED)
    began = time.monotonic()
    _, statuses = stop_within(started, {frozen: 0})
    os.kill(started.pids[frozen], signal.SIGKILL)
    os.waitpid(started.pids[frozen], 0)
    return time.monotonic() - began, statuses


def _seen_samples(folder: Path, processes: int, main: Callable[[int], None]) -> list[tuple[int, int, int]]:
    """Run to the end; return (number, epoch, index) of every sample that any process trained on."""
    for path in folder.glob("samples-*.txt"):
        path.unlink()

    def noting(rank: int) -> None:
        read = Stage2Samples.__getitem__

        def noted(self: Stage2Samples, key: SampleKey) -> dict[str, Any]:
            if self.draw:
                with (folder / f"samples-{rank}.txt").open("a") as file:
                    file.write(f"{key.number} {key.epoch} {key.index}\n")
            return read(self, key)

        Stage2Samples.__getitem__ = noted
        main(rank)

    _finish(folder, processes, noting)
    lines = [line for path in folder.glob("samples-*.txt") for line in path.read_text().splitlines()]
    return [tuple(map(int, line.split())) for line in lines]


def _sentence(output: str) -> str:
    found = re.findall(r"^error: .*$", output, re.MULTILINE)
    assert found, f"no process gave a reason: {output[-2000:]}"
    return found[0]
