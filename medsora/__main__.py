"""`medsora COMMAND`, also `python -m medsora COMMAND`: every command of MedSora by one name."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from medsora.checkout import command_name
from medsora.config.choices import DTYPES, LAYOUTS
from medsora.config.presets import NAMED_PRESETS
from medsora.errors import bad_input_from_errors
from medsora.runtime.exit import EXIT_STATUSES, exit_with_status

PIPED_WIDTH = 120  # in characters, for output without a terminal
# Commands with a parser of their own: module, whose `main(arguments, prog)` runs it; first arguments; help.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train-vae": ("medsora.training.stage1.command", (), "stage 1: fine-tune the VAE"),
    "train-dit": ("medsora.training.stage2.command", (), "stage 2: train the denoiser"),
    "train-ar": ("medsora.training.ar.command", (), "train EndoGen, a baseline that writes codes"),
    "sample": ("medsora.sampling.command", (), "sample videos from a trained model"),
    "evaluate": ("medsora.evaluation.command", (), "compare generated with real clips"),
    "check": ("medsora.data.__main__", ("check",), "check a folder of videos"),
    "study": ("medsora.studies.command", (), "train variants of a config and compare them"),
    "downstream": ("medsora.downstream.command", (), "measure the use of generated clips for other tasks"),
    "app": ("medsora.app.__main__", (), "sample in a browser"),
    "demo": ("medsora.demo.run", (), "train, sample and evaluate on the embedded phantom"),
}


def parser(prog: str = "medsora") -> argparse.ArgumentParser:
    """Return the parser of all commands; `work` names the module that does it, which loads slowly."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Train, sample and evaluate video diffusion models of endoscopy.",
        epilog=f"{prog} COMMAND --help explains a command. {EXIT_STATUSES}",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_new(commands)
    for name, (_, _, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    _add_export(commands)
    _add_convert(commands)
    return top


def _add_new(commands: argparse._SubParsersAction) -> None:
    new = commands.add_parser(
        "new",
        help="check a folder of videos and write a config that fits it",
        description="Check the videos in DIR; write PROJECT/config.yaml, which fits them and this machine, "
        "with a reason on every line, and a contact sheet; print the next three commands. Not interactive.",
        epilog=EXIT_STATUSES,
    )
    new.set_defaults(work="medsora.project.new")
    add = new.add_argument
    add("project", type=Path, metavar="PROJECT", help="new folder; its name becomes the run's")
    add("--data", required=True, metavar="DIR", help="a folder of videos or of frame folders")
    add("--size", type=int, metavar="PX", help="side of the clips (default: what fits, up to 128)")
    add("--preset", choices=tuple(NAMED_PRESETS), help="denoiser and size (default: what fits)")
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of the GPU to plan for; 0: train on the CPU (default: this machine's)",
    )


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="write a run's model folder with its card; optionally upload it",
        description="Write a run's newest complete checkpoint, its VAE or tokenizer and a model card to OUT, "
        f"which its pipeline's from_pretrained and {command_name('sample')} read; with --push upload it to "
        "the hub too.",
        epilog=EXIT_STATUSES,
    )
    export.set_defaults(work="medsora.project.export")
    add = export.add_argument
    add(
        "run",
        type=Path,
        metavar="RUN",
        help="a run folder of stage 2 or of EndoGen (runs/NAME/dit-PRESET, runs/NAME/endogen-PRESET), or "
        "runs/NAME",
    )
    add("out", type=Path, metavar="OUT", help="the folder to write")
    add("--checkpoint", type=int, metavar="STEP", help="which checkpoint (default: the newest complete one)")
    add("--raw", action="store_true", help="write the raw weights instead of their EMA")
    add("--dtype", choices=DTYPES, default="fp32", help="type of the written weights (default: fp32)")
    add("--name", help="the model's name on its card (default: the run's)")
    add(
        "--data-description", metavar="TEXT", help="what it was trained on, for the card; or a file, as @FILE"
    )
    add("--licence", metavar="ID", help="the weights' licence as the hub names it, such as cc-by-nc-4.0")
    add(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help=f"results.json of {command_name('evaluate')} (default: RUN/evaluation/)",
    )
    add("--push", metavar="OWNER/NAME", help="also upload the folder to the hub")
    add("--private", action="store_true", help="with --push: visible to its owner only")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="make a model folder of another system's published checkpoint",
        description="Write a published checkpoint of Endora, Latte, EndoGen or LlamaGen (a PyTorch file, of "
        f"which only tensors are read) and its VAE or tokenizer to OUT, which {command_name('sample')} "
        "reads.",
        epilog=EXIT_STATUSES,
    )
    convert.set_defaults(work="medsora.project.convert")
    add = convert.add_argument
    add(
        "system",
        choices=("endora", "endogen"),
        help="whose it is; Latte's are endora's too, LlamaGen's endogen's",
    )
    add("file", type=Path, metavar="FILE.pt", help="the published file")
    add("out", type=Path, metavar="OUT", help="the folder to make")
    add(
        "--vae",
        metavar="VAE",
        help="endora: an AutoencoderKL, by hub name, folder or JSON config (default: "
        "stabilityai/sd-vae-ft-ema); endogen: the tokenizer's folder, or LlamaGen's file",
    )
    add("--heads", type=int, metavar="N", help="endora: attention heads (default: the published size's)")
    add(
        "--layout",
        choices=LAYOUTS,
        help="endora: order of spatial and temporal blocks (default: the file's, else interlaced)",
    )
    add("--frames", type=int, metavar="F", help="endogen: frames per clip (default: 16)")
    add("--size", type=int, metavar="PX", help="endogen: side of a frame (default: 128)")


def main() -> None:
    """Run the command line."""
    prog = "python -m medsora" if Path(sys.argv[0]).name == "__main__.py" else "medsora"
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        module, first, _ = COMMANDS[sys.argv[1]]
        name = prog if first else f"{prog} {sys.argv[1]}"
        return import_module(module).main([*first, *sys.argv[2:]], name)
    options = parser(prog).parse_args()
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    with bad_input_from_errors():
        import_module(options.work).run(options, console)


def run() -> None:
    """Run the command line and leave the process with the documented exit status."""
    exit_with_status(main)


if __name__ == "__main__":
    run()
