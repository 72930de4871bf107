"""The command line of sampling: `sample_ddim.py` and `medsora sample`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medsora.checkout import command_name
from medsora.config.choices import COMPILE, DTYPES, FORMATS, SAMPLERS
from medsora.runtime.exit import EXIT_STATUSES


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Sample videos from a trained model; `accelerate launch` splits them over processes."""
    options = make_parser(prog).parse_args(arguments)
    from medsora.sampling.run import SamplingSettings, sample_videos

    sample_videos(SamplingSettings(**vars(options)))


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the command line. Its names and defaults are those of `SamplingSettings`, which loads slowly."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample videos from a trained model. Each video has its own seed and is the same, "
        "up to rounding, at any batch size and on any number of processes ('accelerate launch "
        f"{command_name('sample', launched=True)} ...' splits the work). "
        "Videos that are there already are skipped, so an interrupted command can be started again.",
        epilog=EXIT_STATUSES.replace("state saved", "finished videos kept"),
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="RUN_OR_FOLDER",
        help=f"a run folder of {command_name('train-dit')}, a saved pipeline's folder, its OWNER/NAME on the "
        "hub, or a model that comes with MedSora (phantom)",
    )
    add("--out", type=Path, metavar="DIR", help="where videos and their manifest go (default: videos)")
    add("--num-videos", type=int, metavar="N", help="how many videos (default: 4)")
    add("--batch-size", type=int, metavar="N", help="videos sampled together in a process (default: 8)")
    add("--steps", type=int, metavar="N", help="sampling steps, 1 to 1000 (default: 250)")
    add(
        "--sampler",
        choices=SAMPLERS,
        help="dpmpp needs only 20 to 50 steps, unipc 8 to 30, ddpm is ancestral with the learned variance "
        "(default: the model's scheduler, mostly ddim)",
    )
    add("--eta", type=float, help="0: deterministic, 1: as random as ancestral sampling (default: 0.0)")
    add("--seed", type=int, help="video k has this seed + k (default: 0)")
    add(
        "--dtype",
        choices=("auto", *DTYPES),
        help="type of the denoiser's weights and activations; auto: bf16 where the processor multiplies it "
        "faster, else fp32, and print why (default: fp32)",
    )
    add(
        "--vae-dtype",
        choices=("auto", *DTYPES),
        help="type of the VAE's; auto: as --dtype where that is bf16 or fp16, else bf16 on a GPU that "
        "supports it and fp32 elsewhere (default: auto)",
    )
    add(
        "--compile",
        choices=COMPILE,
        help="auto: a CUDA graph on a GPU; on: also compile the blocks, on a CPU too, which takes a minute "
        "and pays for many videos; off: neither (default: auto)",
    )
    add(
        "--frames",
        type=int,
        metavar="F",
        help="frames per video: 1, 8k or 8k+1, with --window any (default: the model's)",
    )
    add("--label", metavar="NAME", help="class label (default: unconditional)")
    add(
        "--guidance",
        type=float,
        metavar="G",
        help="classifier-free guidance scale; 1 disables it, 2-4 is typical and doubles the cost "
        "(default: 1.0)",
    )
    add(
        "--first-frame",
        type=Path,
        metavar="FILE",
        help="a picture that the videos begin with, or a video whose last frames they continue "
        "(default: the model begins them)",
    )
    add(
        "--window",
        type=int,
        metavar="W",
        help="make longer videos in windows of W frames, each of which continues the one before (default: "
        "all frames at once)",
    )
    add("--temperature", type=float, help="sampling temperature of EndoGen; 0: greedy (default: 1.0)")
    add(
        "--top-k",
        type=int,
        metavar="K",
        help="EndoGen draws among the K likeliest codes; 0: all (default: 2000)",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="EndoGen's nucleus sampling: probability mass to keep (default: 1.0)",
    )
    add("--format", choices=FORMATS, help="video files, or folders of PNGs (default: mp4)")
    add("--fps", type=float, help="frames per second (default: the model's)")
    add("--raw", action="store_true", help="use a run's raw weights instead of their EMA")
    return parser
