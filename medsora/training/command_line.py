"""The command line that the training scripts share, and how a note shows one."""

from __future__ import annotations

import argparse
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from medsora.config.load import load_config
from medsora.config.presets import NAMED_PRESETS
from medsora.config.schema import STAGE_2, Config
from medsora.errors import BadInput
from medsora.runtime.exit import EXIT_STATUSES


def number_between(least: float, most: float, what: str) -> Callable[[str], float]:
    """Return an argparse `type` for a number between both bounds, which are excluded; `what` says it."""

    def number(text: str) -> float:
        with suppress(ValueError):
            if least < (value := float(text)) < most:
                return value
        raise argparse.ArgumentTypeError(f"must be {what}, not {text}")

    return number


time_limit = number_between(0, math.inf, "a number of minutes greater than 0")


def training_arguments(
    description: str, stage: str, arguments: Sequence[str] | None = None, prog: str | None = None
) -> tuple[Config, argparse.Namespace]:
    """Parse the arguments of a stage's training (default: the process's); return the config and options."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=EXIT_STATUSES)
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    if stage == STAGE_2:
        parser.add_argument(
            "--preset", choices=tuple(NAMED_PRESETS), help="size of the denoiser (default: the config's)"
        )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: resume if the run folder has a checkpoint; never: refuse such a folder (default: auto)",
    )
    parser.add_argument(
        "--time-limit",
        type=time_limit,
        metavar="MINUTES",
        help="save and exit with status 75 before this many minutes have passed",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and print steps, memory and disk space needed, without training",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="with --dry-run: number of processes to plan for, one per GPU (default: 1)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, such as data.root=clips"
    )
    options = parser.parse_intermixed_args(arguments)
    overrides = list(options.overrides)
    if stage == STAGE_2 and options.preset:
        overrides.append(f"denoiser.preset={options.preset}")
    config = load_config(options.config, overrides)
    if options.processes < 1 or (options.processes > 1 and not options.dry_run):
        raise BadInput("--processes is a number from 1 on for --dry-run; a launcher starts processes.")
    folder = config.folder(stage)
    if options.resume == "never" and (folder / "checkpoints").is_dir():
        raise BadInput(f"{folder} already holds a run; take another run.name, or resume with --resume auto.")
    return config, options


def minutes_left(limit: float | None) -> float | None:
    """Return the rest of a `--time-limit`, which counts from the process's start, imports included."""
    if limit is None:
        return None
    return limit - (time.time() - psutil.Process().create_time()) / 60


def documented_command(module: str, arguments: Sequence[str]) -> str:
    """Return `python -m module ...` as it is typed at the top of the repository, to be passed on in a note.

    A path from elsewhere (absolute, or through "..") is shortened to its part below the working folder, to
    its part from `runs` or `configs` on, or to its name.
    """
    return shlex.join(["python", "-m", module, *map(_from_the_top, arguments)])


def _from_the_top(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        where, here = path.absolute(), Path.cwd()
        known = [k for k, part in enumerate(where.parts) if part in ("runs", "configs")]
        if ".." not in where.parts and where.is_relative_to(here):
            value = str(where.relative_to(here))
        else:
            value = str(Path(*where.parts[known[-1] if known else -1 :]))
    return option + equals + value
