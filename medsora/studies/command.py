"""The command line of `medsora study`."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from medsora.errors import BadInput, building
from medsora.runtime.exit import EXIT_STATUSES
from medsora.studies.paired import MAX_SEEDS
from medsora.studies.variants import variants_of

MAX_STEPS = 10_000_000
MAX_CLIPS = 4096


STUDIES = {"ablate": "train a config's variants with the same seeds and compare their held-out scores"}


def ablate_parser(prog: str = "medsora study ablate") -> argparse.ArgumentParser:
    """Return the parser of `ablate`."""
    ablate = argparse.ArgumentParser(
        prog=prog,
        description="Train the config and its variants, one change at a time, with the same seeds, clips, "
        "noise and cached latents; print paired differences with intervals. Start again to resume.",
        epilog=EXIT_STATUSES,
    )
    add = ablate.add_argument
    add("--config", required=True, metavar="FILE", help="the config to vary")
    add(
        "--vary",
        required=True,
        nargs="+",
        metavar="KEY=VALUE,VALUE",
        help="keys of one stage and their values, such as denoiser.scan=spiral,raster",
    )
    add("--grid", action="store_true", help="all combinations of the values instead of one change at a time")
    add("--seeds", type=int, default=3, metavar="N", help="seeds per variant, from run.seed on (default: 3)")
    budget = ablate.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, metavar="N", help="optimiser steps of each run")
    budget.add_argument("--minutes", type=float, metavar="M", help="minutes of training of each run")
    add("--clips", type=int, default=16, metavar="N", help="held-out clips to score at most (default: 16)")
    add("--out", type=Path, metavar="DIR", help="folder of the runs and tables (default: runs/ablate-NAME)")
    add("--dry-run", action="store_true", help="check every variant and print the commands; train nothing")
    add("overrides", nargs="*", metavar="key=value", help="change keys of the config for all variants")
    return ablate


def main(arguments: Sequence[str] | None = None, prog: str = "medsora study") -> None:
    """Run a study; raises `BadInput` for whatever cannot be used."""
    arguments = list(arguments or [])
    names = "; ".join(f"{name}: {summary}" for name, summary in STUDIES.items())
    top = argparse.ArgumentParser(
        prog=prog, description="Train several models and compare them.", epilog=names
    )
    top.add_argument("study", choices=tuple(STUDIES), help=f"'{prog} STUDY --help' explains a study")
    top.parse_args(arguments[:1])
    options = ablate_parser(f"{prog} ablate").parse_intermixed_args(arguments[1:])
    for name, value, most in (
        ("seeds", options.seeds, MAX_SEEDS),
        ("steps", options.steps, MAX_STEPS),
        ("clips", options.clips, MAX_CLIPS),
    ):
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"--{name} is {value} but must be 1 to {most}.")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise BadInput(f"--minutes is {options.minutes} but must be greater than 0.")
    with building():
        stage, variants = variants_of(options.config, options.overrides, options.vary, grid=options.grid)
        first = variants[0].config
        from medsora.studies.ablate import Study, ablate, check

        study = Study(
            config=options.config,
            overrides=tuple(options.overrides),
            stage=stage,
            variants=tuple(variants),
            seeds=tuple(range(first.run.seed, first.run.seed + options.seeds)),
            steps=options.steps,
            minutes=options.minutes,
            clips=options.clips,
            folder=options.out or Path(first.run.dir) / f"ablate-{first.run.name}",
        )
        parameters = check(study)
    command = shlex.join([*prog.split(), *arguments])
    if options.dry_run:
        print(f"{len(variants)} variants x {options.seeds} seeds, into {study.folder}:")
        for variant in variants:
            print(f"  {variant.title}: {parameters[variant.title]:,} trained parameters")
            print(f"    {shlex.join(['medsora', *study.command(variant, study.seeds[0])])}")
        print("ready")
        return
    ablate(study, parameters, command)
    print(study.report(parameters, command).markdown())
    print(f"written: {study.folder / 'results.md'}")
