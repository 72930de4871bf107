"""The command line of `medsora study`."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from medsora.config.load import load_config
from medsora.errors import BadInput, Interrupted, bad_input_from_errors, check_limits
from medsora.runtime.exit import EXIT_STATUSES
from medsora.runtime.files import around_marks, write_between_marks
from medsora.studies.paired import MAX_SEEDS
from medsora.studies.variants import variants_of

MAX_STEPS = 10_000_000
MAX_CLIPS = 4096
MIN_COMPARED = 4  # minimum clips of a set for a comparison


STUDIES = {
    "ablate": "train a config's variants with the same seeds and compare their held-out scores",
    "equal-cost": "train MedSora and Endora for equal minutes and equally many steps and compare them",
}
PAGE_BEGIN = "<!-- medsora study equal-cost -->"
ABLATION_BEGIN = "<!-- medsora study ablate of {} -->"  # train_vae or train_dit


def _ablate_parser(prog: str) -> argparse.ArgumentParser:
    ablate = argparse.ArgumentParser(
        prog=prog,
        description="Train the config and its variants, one change at a time, with the same seeds, clips, "
        "noise and cached latents; print paired differences with intervals. Start again to resume, in "
        "several processes at once to share the runs.",
        epilog=EXIT_STATUSES,
    )
    add = ablate.add_argument
    add("--config", required=True, metavar="FILE", help="the config to vary")
    vary = "keys of one stage and their values, such as denoiser.scan=spiral,raster"
    add("--vary", required=True, nargs="+", metavar="KEY=VALUE,VALUE", help=vary)
    add("--grid", action="store_true", help="all combinations of the values instead of one change at a time")
    add("--seeds", type=int, default=3, metavar="N", help="seeds per variant, from run.seed on (default: 3)")
    minutes = "minutes of training of each run, without starts and evaluations"
    budget = ablate.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, metavar="N", help="optimiser steps of each run")
    budget.add_argument("--minutes", type=float, metavar="M", help=minutes)
    add("--clips", type=int, default=16, metavar="N", help="held-out clips to score at most (default: 16)")
    add(
        "--score-clips",
        type=int,
        metavar="N",
        help="also sample N clips of each run of stage 2, compare their motion with fresh phantom clips and "
        "classify their labels; of stage 1: how many labels the VAE keeps on N clips",
    )
    add("--out", type=Path, metavar="DIR", help="folder of the runs and tables (default: runs/ablate-NAME)")
    add("--page", type=Path, metavar="FILE", help="write the main scores into this page, between its marks")
    add("--dry-run", action="store_true", help="check every variant and print the commands; train nothing")
    add("overrides", nargs="*", metavar="key=value", help="change keys of the config for all variants")
    return ablate


def _equal_cost_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train each system on the same clips and cached latents for equal minutes and for an "
        "equal number of steps, at the best of the same trial learning rates; sample and compare. "
        "Start again to resume.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add(
        "--config",
        default="phantom",
        metavar="FILE",
        help="a config that trains on the phantom (default: %(default)s)",
    )
    systems = "presets, with switches behind a colon, such as medsora-tiny:denoiser.spatial=attention; the "
    systems += "others are compared with the first (default: medsora-tiny endora-tiny)"
    add("--systems", nargs="+", default=["medsora-tiny", "endora-tiny"], metavar="SYSTEM", help=systems)
    rates = "learning rates to try"
    add("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3], metavar="LR", help=rates)
    add("--trial-steps", type=int, default=60, metavar="N", help="steps of a trial (default: %(default)s)")
    add("--minutes", type=float, default=8.0, metavar="M", help="minutes of each run (default: %(default)s)")
    add("--segment", type=float, default=2.0, metavar="M", help="minutes of a turn (default: %(default)s)")
    add("--steps", type=int, default=400, metavar="N", help="steps of each run (default: %(default)s)")
    add("--seeds", type=int, default=3, metavar="N", help="seeds of each system (default: %(default)s)")
    add(
        "--clips",
        type=int,
        default=200,
        metavar="N",
        help="clips to sample from each run (default: %(default)s)",
    )
    add("--sample-steps", type=int, default=20, metavar="N", help="dpmpp's steps (default: %(default)s)")
    add("--hours", type=float, default=3.0, metavar="H", help="maximum hours of the study (default: 3)")
    add("--out", type=Path, default=Path("runs/equal-cost"), metavar="DIR", help="(default: %(default)s)")
    add("--page", type=Path, metavar="FILE", help="write the results into this page, between its marks")
    add("--dry-run", action="store_true", help="check every system and print the arithmetic; train nothing")
    add("overrides", nargs="*", metavar="key=value", help="change keys of the config for all systems")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "medsora study") -> None:
    """Run a study; raises `BadInput` for invalid input."""
    arguments = list(arguments or [])
    names = "; ".join(f"{name}: {summary}" for name, summary in STUDIES.items())
    top = argparse.ArgumentParser(
        prog=prog, description="Train several models and compare them.", epilog=names
    )
    top.add_argument("study", choices=tuple(STUDIES), help=f"'{prog} STUDY --help' explains a study")
    top.parse_args(arguments[:1])
    study, *rest = arguments
    parser, run = {"ablate": (_ablate_parser, _ablate), "equal-cost": (_equal_cost_parser, _equal_cost)}[
        study
    ]
    options = parser(f"{prog} {study}").parse_intermixed_args(rest)
    _check_numbers(options)
    run(options, shlex.join([*prog.split(), *arguments]))


def _check_numbers(options: argparse.Namespace) -> None:
    limits = dict.fromkeys(("steps", "trial_steps"), (1, MAX_STEPS))
    limits |= {"seeds": (1, MAX_SEEDS), "sample_steps": (1, 1000), "score_clips": (MIN_COMPARED, MAX_CLIPS)}
    check_limits(options, limits | {"clips": (MIN_COMPARED if "rates" in options else 1, MAX_CLIPS)})
    for name in ("minutes", "segment", "hours", "rates"):
        given = getattr(options, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"--{name} is {value} but must be greater than 0.")
    for name in ("systems", "rates"):
        values = getattr(options, name, [])
        if twice := [value for value in values if values.count(value) > 1]:
            raise BadInput(f"--{name} names {twice[0]} twice; name each once.")


def _ablate(options: argparse.Namespace, command: str) -> None:
    with bad_input_from_errors():
        stage, variants = variants_of(options.config, options.overrides, options.vary, grid=options.grid)
        first = variants[0].config
        from medsora.studies.ablate import Study, check, exit_if_failed, keep_settings, run_all
        from medsora.studies.scores import Scoring

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
            scoring=Scoring(options.score_clips) if options.score_clips else None,
        )
        parameters = check(study)
        mark = ABLATION_BEGIN.format(stage)
        if options.page:
            around_marks(options.page, mark)  # refused now rather than after the training
    if options.dry_run:
        print(f"{len(variants)} variants x {options.seeds} seeds, into {study.folder}:")
        for variant in variants:
            print(f"  {variant.title}: {parameters[variant.title]:,} trained parameters")
            print(f"    {study.shown_command(variant)}")
        print("ready")
        return

    def show() -> None:
        report = study.report(parameters, command)
        print(report.markdown())
        if options.page:
            write_between_marks(options.page, mark, ["", *report.page(), ""])
        print(f"written: {study.folder / 'results.md'}")

    keep_settings(study.folder, study.settings())
    try:
        failed = run_all(study, parameters, command)
    except (Interrupted, BadInput):
        show()
        raise
    show()
    exit_if_failed(failed)


def _equal_cost(options: argparse.Namespace, command: str) -> None:
    with bad_input_from_errors():
        from medsora.studies.equal_cost import EqualCost
        from medsora.studies.scores import Scoring

        first = load_config(options.config, list(options.overrides)).run.seed
        study = EqualCost(
            config=options.config,
            overrides=tuple(options.overrides),
            systems=tuple(options.systems),
            rates=tuple(options.rates),
            trial_steps=options.trial_steps,
            minutes=options.minutes,
            segment=options.segment,
            steps=options.steps,
            seeds=tuple(range(first, first + options.seeds)),
            scoring=Scoring(options.clips, steps=options.sample_steps),
            hours=options.hours,
            folder=options.out,
        )
        parameters = study.check()
        if options.page:
            around_marks(options.page, PAGE_BEGIN)
    if options.dry_run:
        print(*study.plan()[0], sep="\n")
        for system, count in parameters.items():
            print(f"  {system}: {count:,} trained parameters")
        print("ready")
        return
    page = study.run(parameters, command)
    print(page)
    if options.page:
        lines = [f"##{line}" if line.startswith("#") else line for line in page.splitlines()]
        write_between_marks(options.page, PAGE_BEGIN, ["", *lines, ""])
    print(f"written: {study.folder / 'results.md'}")
