"""`python -m medsora.data check DIR` checks a folder of videos; `phantom OUT` renders one."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medsora.config.choices import PHANTOM_LOOKS
from medsora.config.crop import checked_crop, crop_of_text
from medsora.errors import bad_input_from_errors, check_limits
from medsora.runtime.exit import exit_with_status

PIPED_WIDTH = 120  # characters, where the terminal's width is unknown


def parser(prog: str = "python -m medsora.data") -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Look over a folder of videos before training on it, or render phantom videos.",
        epilog="exit status: 0 success, 1 error, 2 invalid input",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="a table of every video: what it is, how many clips it gives, what is wrong with it",
        description="Decode every video file and frame folder below DIR once; print a table of container, "
        "codec, frames counted by decoding, fps, size, usable clips, damage, black borders and burnt-in "
        "text; draw a contact sheet. "
        "Results are kept, so a second check and the training run decode only what changed.",
        epilog="exit status: 0 at least one clip can be used; 2 none can, or there is no such folder",
    )
    check.add_argument("folder", metavar="DIR", help="folder of video files or frame folders, nested or not")
    check.add_argument(
        "--frames", type=int, default=16, help="frames of a clip; one more is read for the flow (default: 16)"
    )
    pace = check.add_mutually_exclusive_group()
    pace.add_argument("--interval", type=int, metavar="N", help="take every N-th source frame (default: 3)")
    pace.add_argument(
        "--rate", type=float, metavar="FPS", help="instead of --interval: frames per second, taken by time"
    )
    check.add_argument("--stride", type=int, help="source frames between clips (default: one clip's span)")
    size = "side, or height and width (default: 128)"
    check.add_argument("--size", type=int, nargs="+", default=[128], metavar="PX", help=size)
    crop = "auto: cut black borders off; none; or TOP,BOTTOM,LEFT,RIGHT, of the frame (default: auto)"
    check.add_argument("--crop", type=crop_of_text, default="auto", help=crop)
    check.add_argument("--sheet", type=Path, help="the contact sheet (default: runs/check/NAME.png)")
    check.add_argument("--cache", type=Path, help="where results are kept (default: below runs/cache)")
    check.set_defaults(run=_run_check)

    phantom = commands.add_parser(
        "phantom",
        help="render procedural endoscopy with its exact optical flow",
        description="Render phantom videos (lossless), their exact optical flow and labels into OUT.",
        epilog="exit status: 0 success, 2 invalid input",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    phantom.add_argument("folder", metavar="OUT", type=Path, help="folder to write")
    phantom.add_argument("--videos", type=int, default=96, help="how many videos")
    phantom.add_argument("--frames", type=int, default=33, help="frames per video")
    phantom.add_argument("--size", type=int, default=64, help="side in pixels")
    phantom.add_argument("--polyp-size", type=float, default=1.0, help="width of polyps, times the usual")
    phantom.add_argument("--look", choices=PHANTOM_LOOKS, default=PHANTOM_LOOKS[0], help="the endoscope")
    phantom.add_argument(
        "--masks", action="store_true", help="single frames of polyps with exact masks instead of videos"
    )
    phantom.add_argument("--seed", type=int, default=0, help="seed of the videos' content")
    phantom.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render")
    phantom.set_defaults(run=_run_phantom)
    return top


def _run_check(options: argparse.Namespace, console: Console) -> None:
    """Check a folder, print the table, write the sheet; raises `BadInput` if no clip can be used."""
    from medsora.data.checking.check import check_folder
    from medsora.data.checking.view import check_sheet, check_table, check_totals
    from medsora.data.sheet import save_image

    check_limits(options, dict.fromkeys(("frames", "interval", "stride"), (1, math.inf)))
    if options.rate is not None and not 0 < options.rate <= 1000:
        raise ValueError(f"--rate is {options.rate} but must be above 0 and at most 1000 frames per second.")
    if len(options.size) > 2 or min(options.size) < 1:
        raise ValueError("--size takes one number of pixels or two, height and width.")
    with Progress(console=console, transient=True) as progress:
        report = check_folder(
            options.folder,
            frames=options.frames + 1,
            interval=None if options.rate else options.interval or 3,
            rate=options.rate,
            clip_stride=options.stride,
            crop=checked_crop(options.crop, "--crop"),
            cache_path=options.cache,
            on_progress=_shown(progress, "decoding"),
        )
    if report.reports or report.unlisted or report.left_out:
        console.print(check_table(report))
        console.print(check_totals(report), highlight=False)
    report.require_clips()
    sheet = options.sheet or Path("runs") / "check" / f"{Path(options.folder).resolve().name}.png"
    size = options.size[0] if len(options.size) == 1 else tuple(options.size)
    save_image(sheet, check_sheet(report, size))
    console.print(f"contact sheet: {sheet}", highlight=False, soft_wrap=True)


def _run_phantom(options: argparse.Namespace, console: Console) -> None:
    from medsora.data.phantom import write_phantom

    check_limits(options, dict.fromkeys(("videos", "frames", "size", "workers"), (1, math.inf)))
    with Progress(console=console, transient=True) as progress:
        write_phantom(
            options.folder,
            options.videos,
            options.frames,
            options.size,
            options.seed,
            workers=options.workers,
            progress=_shown(progress, "rendering"),
            polyp_size=options.polyp_size,
            look=options.look,
            masks=options.masks,
        )
    what = f"{options.videos} phantom videos"
    if options.masks:
        what = f"{options.videos * options.frames} phantom frames with masks"
    console.print(f"{what}: {options.folder}", highlight=False, soft_wrap=True)


def _shown(progress: Progress, what: str) -> Callable[[int, int], None]:
    task = progress.add_task(what, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m medsora.data") -> None:
    """Run the command line."""
    options = parser(prog).parse_args(arguments)
    with bad_input_from_errors():
        options.run(options, Console(width=None if sys.stdout.isatty() else PIPED_WIDTH))


if __name__ == "__main__":
    exit_with_status(main)
