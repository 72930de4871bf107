"""Ctrl-C and SIGTERM at random moments of every long script: status 75, a sentence, and nothing lost."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import evaluate
import sample_ddim
import train_dit
import train_vae
from medsora.runtime.digests import sha256
from medsora.runtime.exit import STOP_SIGNALS
from medsora.training import fill_caches as cache
from tests.faults.processes import alone, finish, start_forks, wait
from tests.faults.scenarios import configure, prepare, script


@dataclass(frozen=True)
class Command:
    """A long script: what it is called with, and which of its files must be the same in the end."""

    main: Callable[[], None]
    arguments: tuple[str, ...]
    results: str


def commands(work: Path) -> dict[str, Command]:
    """Return every long script of the project; each writes below the folder that it is started in."""
    config, clips, vae = ("--config", "config.yaml"), str(work / "clips"), str(work / "vae")
    last = "checkpoints/step-0000004/**/*.safetensors"
    cached = ("cache.latents=disk", "cache.prior=disk")
    sizes = ("--frames", "4", "--size", "48")
    measured, page = ("--real", clips, *sizes, "--out", "results"), "results/results.md"
    model = str(work / "model" / "runs" / "tiny" / "dit-tiny")
    sampled = ("--model", model, "--num-videos", "3", "--steps", "30", "--batch-size", "1", "--out", "videos")
    return {
        "train_vae": Command(train_vae.main, config, f"runs/tiny/vae/{last}"),
        "train_dit": Command(train_dit.main, config, f"runs/tiny/dit-tiny/{last}"),
        "cache": Command(cache.main, (*config, *cached), "cache/**/*.safetensors"),
        "sample_ddim": Command(sample_ddim.main, sampled, "videos/*.mp4"),
        "evaluate": Command(evaluate.main, (*measured, "--fake", clips, "--bootstrap", "30"), page),
        "evaluate --vae": Command(evaluate.main, (*measured, "--frames", "8", "--vae", vae), page),
    }


def interrupt_runs(options: argparse.Namespace) -> int:
    """Interrupt each script `times` times; print a line for each; return the exit status."""
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="medsora-interrupt-"))
    failed = 0
    try:
        alone(partial(prepare, work))
        finish(start_forks(configure(work, "model", 1), 1, script(train_dit.main, "--config", "config.yaml")))
        for name, command in commands(work).items():
            failed += _try_script(name, command, work, options.times)
    finally:
        shutil.rmtree(work)
    return 1 if failed else 0


def _try_script(name: str, command: Command, work: Path, times: int) -> int:
    """Return how many interruptions of one script did not end as documented."""
    main = script(command.main, *command.arguments)
    straight = configure(work, f"straight-{name}", 1)
    began = time.monotonic()
    finish(start_forks(straight, 1, main))
    takes_s, wanted = time.monotonic() - began, _digests(straight, command.results)
    assert wanted, f"{name} left nothing that could be compared"
    statuses: Counter[int] = Counter()
    slowest_s, failed = 0.0, 0
    for number in range(times):
        folder = configure(work, f"{name}-{number}", 1)
        started = start_forks(folder, 1, main)
        time.sleep(random.uniform(0, takes_s))
        signalled = time.monotonic()
        os.kill(started.pids[0], random.choice(STOP_SIGNALS))
        (status,) = wait(started)
        slowest_s = max(slowest_s, time.monotonic() - signalled)
        statuses[status] += 1
        finish(again := start_forks(folder, 1, main))
        sentences = again.output.count("interrupted: ")
        if (status, sentences) not in ((75, 1), (0, 0)) or "Traceback" in again.output:
            failed += 1
            print(f"{name} ended with status {status}: {again.output[-2000:]}")
        elif _digests(folder, command.results) != wanted:
            failed += 1
            print(f"{name}, interrupted, ended in something else")
        shutil.rmtree(folder)
    print(
        f"{name}: {times} interruptions, {statuses[75]} with status 75 and {statuses[0]} too late, "
        f"left within {slowest_s:.1f} s; started again: {'the same' if not failed else f'{failed} FAILED'}",
        flush=True,
    )
    return failed


def _digests(folder: Path, results: str) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.glob(results))}
