"""`python -m tests.faults COMMAND`: break training runs and their input, and see what is lost."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Run one command; return the exit status."""
    top = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog="exit status: 0 nothing was lost and nothing undocumented came out; 1 something was",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    kill = commands.add_parser(
        "kill",
        help="kill training runs, start them again, compare all with a run that went through",
    )
    kill.add_argument("--times", type=int, default=20, metavar="N", help="kills (default: 20)")
    kill.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    kill.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="taken in turn (default: 1 2)"
    )
    kill.add_argument(
        "--stages", nargs="+", choices=("vae", "dit", "dit-cached"), default=["vae", "dit", "dit-cached"]
    )
    kill.add_argument(
        "--where", nargs="+", metavar="PLACE", help="some places only; see tests/faults/places.py"
    )
    kill.add_argument(
        "--commands",
        action="store_true",
        help="the real commands, torchrun included; killed at random moments",
    )

    ask = commands.add_parser(
        "interrupt", help="Ctrl-C and SIGTERM for every long script, started again after"
    )
    ask.add_argument("--times", type=int, default=3, metavar="N", help="for each script (default: 3)")
    ask.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")

    reads = commands.add_parser("failed-reads", help="reads that fail while runs are resumed")
    reads.add_argument("--stages", nargs="+", choices=("vae", "dit"), default=["vae", "dit"])
    reads.add_argument("--rounds", type=int, default=2, help="how often every read fails (default: 2)")
    reads.add_argument("--times", type=int, metavar="N", help="so many of each stage instead")
    reads.add_argument("--seed", type=int, default=0, help="decides their order (default: 0)")

    disks = commands.add_parser("full-disk", help="disks that are full in the midst of a command")
    disks.add_argument("--times", type=int, default=20, metavar="N", help="for each command (default: 20)")
    disks.add_argument("--seed", type=int, default=0, help="decides their sizes (default: 0)")

    machines = commands.add_parser("two-machines", help="two torchrun agents; one of them is killed")
    machines.add_argument("--only", nargs="+", choices=("kill", "commands"), default=["kill", "commands"])

    several = commands.add_parser("together", help="several processes as one run: they die, hang, disagree")
    several.add_argument("--processes", type=int, default=2, help="(default: 2)")
    several.add_argument("--only", nargs="+", metavar="SCENARIO", help="see tests/faults/scenarios.py")

    page = commands.add_parser("page", help="many visitors of the page at once, and some that are none")
    page.add_argument("--clients", type=int, default=20, help="at a time (default: 20)")
    page.add_argument("--jobs", type=int, default=300, help="sampling requests (default: 300)")

    for command in (kill, several):
        command.add_argument(
            "--within",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="how soon the others must have stopped when one is killed (default: 60)",
        )

    for name, what, count in (
        ("fuzz-video", "mutated video files against the check and the reader", 2000),
        ("fuzz-config", "mutated configurations against the config loader", 10000),
        ("fuzz-checkpoint", "mutated checkpoints against everything that loads them", 10000),
        ("flip-bits", "one flipped bit in everything that is written, then read again", 1500),
        ("fuzz-models", "model folders of strangers against loading and sampling", 200),
    ):
        fuzz = commands.add_parser(name, help=what)
        fuzz.add_argument("--inputs", type=int, default=count, metavar="N", help=f"(default: {count})")
        fuzz.add_argument("--seed", type=int, default=0, help="decides the mutations (default: 0)")

    options = top.parse_args()
    if options.command == "kill":
        from tests.faults.kill import kill_runs

        return kill_runs(options)
    if options.command == "interrupt":
        from tests.faults.interrupt import interrupt_runs

        return interrupt_runs(options)
    if options.command == "failed-reads":
        from tests.faults.surroundings.failed_reads import fail_reads

        return fail_reads(options)
    if options.command == "full-disk":
        from tests.faults.surroundings.full_disk import fill_disks

        return fill_disks(options)
    if options.command == "two-machines":
        from tests.faults.surroundings.two_machines import try_two_machines

        return try_two_machines(options)
    if options.command == "together":
        from tests.faults.scenarios import try_together

        return try_together(options)
    if options.command == "page":
        from tests.faults.attacks.page import visit_page

        return visit_page(options.clients, options.jobs)
    if options.command == "fuzz-video":
        from tests.faults.fuzz_video import fuzz_video as fuzz_inputs
    elif options.command == "fuzz-config":
        from tests.faults.fuzz_config import fuzz_config as fuzz_inputs
    elif options.command == "flip-bits":
        from tests.faults.attacks.flips import flip_bits as fuzz_inputs
    elif options.command == "fuzz-models":
        from tests.faults.attacks.models import fuzz_models as fuzz_inputs
    else:
        from tests.faults.fuzz_checkpoint import fuzz_checkpoint as fuzz_inputs
    return fuzz_inputs(options.inputs, options.seed)


if __name__ == "__main__":
    sys.exit(main())
