"""The pipeline end to end on the embedded phantom (`make demo`): train both stages, sample, compare, show.

It fine-tunes the model that comes with MedSora for another clinic's endoscope, or trains from nothing, by
the functions that the scripts call. Started again after an interruption it resumes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsora.config.load import load_config
from medsora.config.schema import Config
from medsora.errors import check_limits
from medsora.runtime.exit import EXIT_STATUSES
from medsora.training.command_line import time_limit

if TYPE_CHECKING:
    from medsora.evaluation.sanity.baselines import Outcome

STEPS = 250
SPARE = 0.8  # plan with this share of the minutes: a machine may become slower meanwhile
SHIPPED, SCRATCH = "shipped", "scratch"
CONFIGS = {SHIPPED: "configs/phantom_clinic.yaml", SCRATCH: "configs/phantom.yaml"}
DEFAULT_MINUTES = {SHIPPED: 4.5, SCRATCH: 10.0}  # with the imports, five


def main(arguments: Sequence[str] | None = None, prog: str = "python -m medsora.demo") -> None:
    """Run the demo; see the module's docstring."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0], epilog=EXIT_STATUSES)
    parser.add_argument(
        "--from",
        dest="start",
        choices=(SHIPPED, SCRATCH),
        default=SHIPPED,
        help="fine-tune the model that comes with MedSora on clips of another look, or train from nothing "
        "(default: %(default)s)",
    )
    parser.add_argument("--config", metavar="FILE", help=f"(default: {' or '.join(CONFIGS.values())})")
    parser.add_argument("--videos", type=int, default=8, metavar="N", help="videos to sample (default 8)")
    parser.add_argument(
        "--minutes",
        type=time_limit,
        metavar="M",
        help="time for all of it (default: 4.5); from nothing, stage 2 takes as many steps as fit, from the "
        "config's on, unless train_dit.max_steps is given (default: 10)",
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a criterion is not met")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    options = parser.parse_intermixed_args(arguments)
    check_limits(options, {"videos": (1, math.inf)})
    start = options.start
    minutes = DEFAULT_MINUTES[start] if options.minutes is None else options.minutes
    config = load_config(options.config or CONFIGS[start], ["run.name=demo", *options.overrides])
    part = _Parts()
    if start == SHIPPED:
        from medsora.demo.adapt import adapt

        report, outcome = adapt(config, options.videos, minutes, part)
    else:
        has_steps = any(override.startswith("train_dit.max_steps=") for override in options.overrides)
        report, outcome = demo(config, options.videos, None if has_steps else minutes, part)
    from medsora.demo.report import report_lines

    for line in report_lines(outcome):
        print(line, file=sys.stderr)
    print(f"\ndone in {part.seconds():.0f} s: open {report}", file=sys.stderr)
    if options.check and (outcome is None or not outcome.passes):
        sys.exit(1)


class _Parts:
    """Prints the title of each part of a demo, with the seconds since its begin."""

    def __init__(self) -> None:
        self._began, self._number = time.monotonic(), 0

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, title: str) -> None:
        self._number += 1
        print(f"\n[{self._number}] {title} ({self.seconds():.0f} s so far)", file=sys.stderr, flush=True)


def demo(
    config: Config, videos: int, minutes: float | None = None, part: Callable[[str], None] | None = None
) -> tuple[Path, Outcome | None]:
    """Train both stages of `config`, sample `videos` videos and write the report; return path and outcome.

    With `minutes` stage 2 has more steps than the config sets, where so many fit.
    """
    from medsora.demo.outcome import score_demo
    from medsora.demo.pace import paced
    from medsora.demo.report import write_demo_report
    from medsora.sampling.run import SamplingSettings, sample_videos
    from medsora.training.stage1.loop import train_vae
    from medsora.training.stage2.loop import train_dit

    part = part or _Parts()
    began = time.monotonic()
    part("stage 1: fine-tune the VAE on phantom clips")
    train_vae(config)
    if minutes is not None:
        config = paced(config, 60 * SPARE * minutes - (time.monotonic() - began))
    part(f"stage 2: train the denoiser on their latents, {config.train_dit.max_steps} steps")
    run = train_dit(config)
    part(f"sample {videos} videos with {STEPS} DDIM steps")
    out = config.run_dir / "videos"
    settings = {"num_videos": videos, "steps": STEPS, "seed": config.run.seed}
    sample_videos(SamplingSettings(model=str(run), out=out, **settings))
    part("compare with phantom clips and write the report")
    outcome = score_demo(config, out)
    sampling = f"Sampled from the EMA weights with {STEPS} DDIM steps."
    return write_demo_report(config, {"generated": out}, sampling, outcome, "MedSora on the phantom"), outcome
