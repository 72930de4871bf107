"""The command line of `medsora downstream`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from medsora.downstream.study import SUPERVISED
from medsora.errors import BadInput, bad_input_from_errors
from medsora.runtime.exit import EXIT_STATUSES
from medsora.studies.paired import MAX_SEEDS

TASKS = {
    "classify": (
        "medsora.downstream.classify",
        "train a classifier with and without unlabelled clips (FixMatch)",
    ),
    "segment": (
        "medsora.downstream.segmentation.segment",
        "train a U-Net for polyps with and without unlabelled frames (FixMatch on pixels)",
    ),
    "reconstruct": (
        "medsora.downstream.reconstruct",
        "cameras and points of clips by structure from motion (COLMAP)",
    ),
}


def task_parser(task: str, prog: str) -> argparse.ArgumentParser:
    """Return the parser of a task that is trained."""
    module, summary = TASKS[task]
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{summary[0].upper()}{summary[1:]}; start again to resume.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("--labelled", required=True, type=Path, metavar="DIR", help="labelled samples")
    add("--test", required=True, type=Path, metavar="DIR", help="labelled samples to score on")
    import_module(module).add_options(add)
    add(
        "--unlabelled",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="folders of unlabelled samples, such as generated clips; a variant each, equally many are taken",
    )
    add("--max-unlabelled", type=int, default=200, metavar="N", help="of each folder (default: 200)")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each variant (default: 5)")
    add("--steps", type=int, metavar="N", help="optimiser steps of a run (default: 1000)")
    add("--batch", type=int, metavar="B", help="labelled samples of a step (default: 8)")
    add("--ratio", type=int, metavar="MU", help="unlabelled samples per labelled one in a batch (default: 3)")
    add("--threshold", type=float, metavar="P", help="probability from which a pseudo-label counts (0.95)")
    add("--learning-rate", type=float, metavar="LR", help="(default: 0.03)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the runs and of results.md")
    add("--dry-run", action="store_true", help="read and check everything, train nothing")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "medsora downstream") -> None:
    """Run a task; raises `BadInput` for whatever cannot be used."""
    arguments = list(arguments or [])
    names = "; ".join(f"{name}: {summary}" for name, (_, summary) in TASKS.items())
    top = argparse.ArgumentParser(
        prog=prog, description="What generated clips are good for.", epilog=f"{names}. {EXIT_STATUSES}"
    )
    top.add_argument("task", choices=tuple(TASKS), help=f"'{prog} TASK --help' explains a task")
    task = top.parse_args(arguments[:1]).task
    if task == "reconstruct":  # trains nothing, so it has options of its own
        import_module(TASKS[task][0]).main(arguments[1:], f"{prog} {task}")
        return
    options = task_parser(task, f"{prog} {task}").parse_args(arguments[1:])
    check(options)
    with bad_input_from_errors():
        study, train = import_module(TASKS[task][0]).prepare(options, shlex.join([*prog.split(), *arguments]))
    if options.dry_run:
        study.find_finished()
        print(study.markdown())
        left = len(study.variants) * len(study.seeds) - len(study.results)
        print(f"{left} run{'s' * (left != 1)} to train, into {study.folder}: ready")
        return
    study.run(train)
    print(study.markdown())
    print(f"written: {study.folder / 'results.md'}", file=sys.stderr)


def check(options: argparse.Namespace) -> None:
    """Turn `unlabelled` into folders by title and `seeds` into a range; raises `BadInput` for bad numbers."""
    folders = {}
    for text in options.unlabelled:
        name, equals, folder = text.partition("=")
        name, folder = (name, folder) if equals else (Path(text).name, text)
        if not name or not folder or name in (SUPERVISED, *folders):
            raise BadInput(f"--unlabelled {text!r}: give each folder a name of its own, NAME=DIR.")
        folders[name] = Path(folder)
    options.unlabelled = folders
    limits = {"seeds": MAX_SEEDS, "steps": 10_000_000, "batch": 4096, "ratio": 64, "max_unlabelled": 100_000}
    limits |= {"per_class": 100_000, "masks": 100_000, "frames": 256, "size": 1024}
    for name, most in limits.items():
        value = getattr(options, name, None)
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"--{name.replace('_', '-')} is {value} but must be 1 to {most}.")
    if options.learning_rate is not None and not 0 < options.learning_rate < 1e3:
        raise BadInput(f"--learning-rate is {options.learning_rate} but must be above 0, below 1000.")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise BadInput(f"--threshold is {options.threshold} but must be above 0, at most 1.")
    options.seeds = range(options.seeds)
