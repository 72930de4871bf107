"""The command line of `medsora downstream`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medsora.config.checks import FOLDER_NAME
from medsora.downstream.clips import refuse_leaks
from medsora.downstream.study import SUPERVISED
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.runtime.exit import EXIT_STATUSES
from medsora.runtime.malloc import keep_freed_memory
from medsora.studies.paired import MAX_SEEDS

TASKS = {
    "classify": "train a classifier with and without unlabelled clips (FixMatch)",
    "segment": "train a U-Net for polyps with and without unlabelled frames (FixMatch on pixels)",
    "reconstruct": "cameras and points of clips by structure from motion (COLMAP)",
}
MODULES = {name: f"medsora.downstream.{name}" for name in TASKS}
MODULES["segment"] = "medsora.downstream.segmentation.segment"
TRAINING_LIMITS = {"seeds": (1, MAX_SEEDS), "steps": (1, 10_000_000), "batch": (1, 4096), "ratio": (1, 64)}
TRAINING_LIMITS |= {"max_unlabelled": (1, 100_000)}


def main(arguments: Sequence[str] | None = None, prog: str = "medsora downstream") -> None:
    """Run a task; raises `BadInput` for invalid input."""
    arguments = list(arguments or [])
    names = "; ".join(f"{name}: {summary}" for name, summary in TASKS.items())
    top = argparse.ArgumentParser(
        prog=prog,
        description="Measure the use of generated clips for other tasks.",
        epilog=f"{names}. {EXIT_STATUSES}",
    )
    top.add_argument("task", choices=tuple(TASKS), help=f"'{prog} TASK --help' explains a task")
    task = top.parse_args(arguments[:1]).task
    module, summary = import_module(MODULES[task]), TASKS[task]
    parser = argparse.ArgumentParser(
        prog=f"{prog} {task}",
        description=f"{summary[0].upper()}{summary[1:]}; rerun to resume.",
        epilog=EXIT_STATUSES,
    )
    if trains := task != "reconstruct":
        _add_training(parser.add_argument)
    module.add_options(parser.add_argument)
    options = parser.parse_args(arguments[1:])
    check_limits(options, TRAINING_LIMITS | module.LIMITS if trains else module.LIMITS)
    command = shlex.join([*prog.split(), *arguments])
    if not trains:
        options.clips = _named_folders(options.clips, plain=True)
        module.run(options, command)
        return
    options.unlabelled = _named_folders(options.unlabelled, "--unlabelled ", taken=(SUPERVISED,))
    if options.learning_rate is not None and not 0 < options.learning_rate < 1e3:
        raise BadInput(f"--learning-rate is {options.learning_rate} but must be above 0, below 1000.")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise BadInput(f"--threshold is {options.threshold} but must be above 0, at most 1.")
    options.seeds = range(options.seeds)
    keep_freed_memory()
    with bad_input_from_errors():
        study = module.prepare(options, command)
        refuse_leaks(study.test, study.labelled, study.unlabelled)
    if options.dry_run:
        study.find_finished()
        print(study.markdown())
        left = len(study.variants) * len(study.seeds) - len(study.results)
        print(f"{left} run{'s' * (left != 1)} to train, into {study.folder}: ready")
        return
    study.run()
    print(study.markdown())
    print(f"written: {study.folder / 'results.md'}", file=sys.stderr)


def _add_training(add: Any) -> None:
    add("--labelled", required=True, type=Path, metavar="DIR", help="labelled samples")
    add("--test", required=True, type=Path, metavar="DIR", help="labelled samples to score on")
    folders = "folders of unlabelled samples, such as generated clips; a variant each, equally many are taken"
    add("--unlabelled", nargs="+", default=[], metavar="NAME=DIR", help=folders)
    most = "of each folder, evenly spread (default: 200)"
    add("--max-unlabelled", type=int, default=200, metavar="N", help=most)
    add("--seeds", type=int, default=5, metavar="N", help="runs of each variant (default: 5)")
    add("--steps", type=int, metavar="N", help="optimiser steps of a run (default: 1000)")
    add("--batch", type=int, metavar="B", help="labelled samples of a step (default: 8)")
    add("--ratio", type=int, metavar="MU", help="unlabelled samples per labelled one in a batch (default: 3)")
    add("--threshold", type=float, metavar="P", help="probability from which a pseudo-label counts (0.95)")
    add("--learning-rate", type=float, metavar="LR", help="(default: 0.03; small backbone of classify: 0.01)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the runs and of results.md")
    add("--dry-run", action="store_true", help="read and check everything, train nothing")


def _named_folders(
    texts: Sequence[str], option: str = "", *, plain: bool = False, taken: Collection[str] = ()
) -> dict[str, Path]:
    """Return the folders of `NAME=DIR` or `DIR` by name; `plain` names can be those of folders."""
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        name, folder = (name, folder) if equals else (Path(text).resolve().name, text)
        unfit = not name or not folder or name in (*taken, *folders)
        if unfit or (plain and not FOLDER_NAME.fullmatch(name)):
            kind = "plain name" if plain else "name"
            raise BadInput(f"{option}{text!r}: give each folder a {kind} of its own, NAME=DIR.")
        folders[name] = Path(folder)
    return folders
