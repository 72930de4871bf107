"""How a denoising step grows with the film: `python -m benchmarks.length --frames 16 32 64 128`.

Seconds of one step at batch 1, the lengths taking turns, and each length's seconds per frame against the
shortest one's: 1 is linear, below it longer films are cheaper by the frame.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial

import torch

from benchmarks.support.measure import take_turns
from medsora import PRESETS, MedSora
from medsora.errors import bad_input_from_errors, check_limits
from medsora.runtime.exit import exit_with_status
from medsora.runtime.malloc import keep_freed_memory
from medsora.sampling.prepared import PreparedDenoiser
from medsora.vae import check_video_shape, frames_to_latents
from medsora.vae.shapes import PIXELS_PER_LATENT

TIMESTEP = 500


def main() -> None:
    """Measure and print the lengths on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="tiny", choices=list(PRESETS), help="(default: %(default)s)")
    add("--frames", nargs="+", type=int, default=[16, 32, 64, 128], metavar="F", help="(default: 16 to 128)")
    add("--size", type=int, default=64, metavar="PX", help="side of a frame (default: %(default)s)")
    add("--rounds", type=int, default=7, metavar="N", help="turns of every length (default: %(default)s)")
    add("--plain-malloc", action="store_true", help="let the system have what a step frees, to compare")
    options = parser.parse_args()
    check_limits(options, {"rounds": (1, math.inf)})
    with bad_input_from_errors():
        for frames in options.frames:
            check_video_shape(frames, options.size, options.size)
    if not options.plain_malloc:
        keep_freed_memory()
    seconds = step_seconds(options.preset, options.frames, options.size, options.rounds)
    least = min(options.frames)
    for frames in options.frames:
        ratio = seconds[frames] / frames / (seconds[least] / least)
        print(f"{frames:4} frames: {seconds[frames]:8.4f} s a step, {ratio:.2f} times {least}'s per frame")


@torch.no_grad()
def step_seconds(preset: str, lengths: list[int], size: int, rounds: int) -> dict[int, float]:
    """Return the median seconds of a sampling step by the number of frames."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MedSora.from_preset(preset).to(device).eval()
    prepared = PreparedDenoiser(model, [TIMESTEP])
    side, t = size // PIXELS_PER_LATENT, torch.tensor([TIMESTEP], device=device)
    works = {}
    for frames in lengths:
        shape = 1, frames_to_latents(frames), model.config.in_channels, side, side
        works[frames] = partial(prepared, torch.randn(shape, device=device), t)
    times = take_turns(works, rounds, torch.device(device))
    return {frames: statistics.median(seconds) for frames, seconds in times.items()}


if __name__ == "__main__":
    exit_with_status(main)
