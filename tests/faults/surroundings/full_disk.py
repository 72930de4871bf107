"""Disks that are full in the midst of a command: it ends with a sentence and status 2, never by a signal."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import evaluate
import train_dit
import train_vae
from medsora.runtime.exit import exit_with_status
from tests.faults.processes import alone, start_forks, wait, without_pages
from tests.faults.scenarios import configure, prepare
from tests.support.disk.small_disk import mount_small_disk

SMALLEST_BYTES, LARGEST_BYTES = 2**14, 2**22


def fill_disks(options: argparse.Namespace) -> int:
    """Run every command on as many small disks as asked; print what came; return the exit status."""
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="medsora-full-"))
    clips = str(work / "clips")
    cached = ("--config", "../config.yaml", "cache.latents=disk", "cache.prior=disk", "cache.dir=cache")
    scored = ("--real", clips, "--fake", clips, "--out", "results", "--frames", "8", "--size", "32")
    commands: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
        "train_vae": (train_vae.main, ("--config", "../config.yaml")),
        "train_dit": (train_dit.main, cached),
        "evaluate": (evaluate.main, (*scored, "--metrics", "motion")),
    }
    wrong, full = [], 0
    try:
        alone(partial(prepare, work))
        for name, (main, arguments) in commands.items():
            for number in range(options.times):
                size = round(SMALLEST_BYTES * (LARGEST_BYTES / SMALLEST_BYTES) ** random.random())
                folder = configure(work, f"{name}-{number}", 1)
                (folder / "disk").mkdir()
                started = start_forks(folder, 1, partial(_run, main, arguments, folder / "disk", size))
                (status,) = wait(started)
                full += status == 2
                sentences = started.output.count("\nerror: ") + started.output.startswith("error: ")
                if status not in (0, 2) or (status == 2 and sentences != 1) or "Traceback" in started.output:
                    wrong.append(f"{name}, {size} bytes: ended with {status}: {started.output[-600:]}")
                shutil.rmtree(folder)
            print(f"{name}: {options.times} small disks", flush=True)
    finally:
        shutil.rmtree(work)
    for sentence in wrong:
        print(sentence)
    tried = options.times * len(commands)
    print(f"small disks: {tried}, full in {full}; without a sentence: {len(wrong) or 'none'}")
    return 1 if wrong else 0


def _run(main: Callable[[], None], arguments: tuple[str, ...], disk: Path, size: int, rank: int) -> None:
    mount_small_disk(disk, size)
    os.chdir(disk)
    sys.argv = ["command", *arguments]
    without_pages()
    exit_with_status(main)
