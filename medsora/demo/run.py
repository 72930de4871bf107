"""The whole road on the embedded phantom: render, train both stages, sample, show (`make demo`).

It calls the functions that the scripts call, with configs/phantom.yaml; there is no second road. Started
again after an interruption it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medsora.config.load import load_config
from medsora.config.schema import Config
from medsora.runtime.exit import EXIT_STATUSES

STEPS = 250
SPARE = 0.8  # part of the minutes that is planned with: a machine may become slower meanwhile


def main(arguments: Sequence[str] | None = None, prog: str = "python -m medsora.demo") -> None:
    """Run the demo; see the module's docstring."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0], epilog=EXIT_STATUSES)
    parser.add_argument("--config", default="configs/phantom.yaml", metavar="FILE")
    parser.add_argument("--videos", type=int, default=8, metavar="N", help="videos to sample (default 8)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        metavar="M",
        help="stage 2 takes as many steps as fit, from the config's on, unless train_dit.max_steps is "
        "given (default: %(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, ["run.name=demo", *options.overrides])
    told = any(override.startswith("train_dit.max_steps=") for override in options.overrides)
    demo(config, options.videos, None if told else options.minutes)


def demo(config: Config, videos: int, minutes: float | None = None) -> Path:
    """Train both stages of `config`, sample `videos` videos and write the report; return its path.

    With `minutes` stage 2 has more steps than the config asks for, where so many fit.
    """
    from medsora.demo.pace import paced
    from medsora.demo.proof import prove_demo
    from medsora.demo.report import report_lines, write_demo_report
    from medsora.sampling.run import SamplingSettings, sample_videos
    from medsora.training.stage1.loop import train_vae
    from medsora.training.stage2.loop import train_dit

    began = time.monotonic()

    def part(number: int, title: str) -> None:
        print(
            f"\n[{number}/4] {title} ({time.monotonic() - began:.0f} s so far)", file=sys.stderr, flush=True
        )

    part(1, "stage 1: fine-tune the VAE on phantom clips")
    train_vae(config)
    if minutes is not None:
        config = paced(config, 60 * SPARE * minutes - (time.monotonic() - began))
    part(2, f"stage 2: train the denoiser on their latents, {config.train_dit.max_steps} steps")
    run = train_dit(config)
    part(3, f"sample {videos} videos with {STEPS} DDIM steps")
    out = config.run_dir / "videos"
    sample_videos(
        SamplingSettings(model=str(run), num_videos=videos, steps=STEPS, seed=config.run.seed, out=out)
    )
    part(4, "compare with real clips and write the report")
    proof = prove_demo(config, out)
    report = write_demo_report(config, out, STEPS, proof)
    for line in report_lines(proof):
        print(line, file=sys.stderr)
    print(f"\ndone in {time.monotonic() - began:.0f} s: open {report}", file=sys.stderr)
    return report
