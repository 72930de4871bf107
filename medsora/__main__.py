"""`python -m medsora COMMAND`: `new` makes a project from videos, `export` a model folder from a run."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from medsora.errors import building, exit_with_status
from medsora.name_guard import check_kernels_name

check_kernels_name()

PIPED_WIDTH = 120  # characters, where no terminal says how wide it is
EXIT_STATUSES = "exit status: 0 done; 1 failed; 2 bad input, with one sentence"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from medsora import export_model, new_project

    top = argparse.ArgumentParser(
        prog="python -m medsora",
        description="Start with a folder of videos, end with a model folder.",
        epilog=EXIT_STATUSES,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new",
        help="look at a folder of videos, write a config that fits it, say what is next",
        description="Look at the videos in DIR; write PROJECT/config.yaml, which fits them and this machine, "
        "with a reason on every line, and a contact sheet; print the next three commands. Asks nothing.",
        epilog=EXIT_STATUSES,
    )
    new_project.add_arguments(new)
    new.set_defaults(work=new_project.run)

    export = commands.add_parser(
        "export",
        help="make a model folder of a run, with its card; perhaps upload it",
        description="Write a run's newest whole checkpoint, its VAE and a model card to OUT, which "
        "MedSoraPipeline.from_pretrained and sample_ddim.py read; with --push upload it to the hub as well.",
        epilog=EXIT_STATUSES,
    )
    export_model.add_arguments(export)
    export.set_defaults(work=export_model.run)
    return top


def main() -> None:
    """Run the command line."""
    options = parser().parse_args()
    with building():
        options.work(options, Console(width=None if sys.stdout.isatty() else PIPED_WIDTH))


if __name__ == "__main__":
    exit_with_status(main)
