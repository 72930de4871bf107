"""Fidelity to a given first frame, and motion after it, measured on fresh phantom clips.

`python -m medsora.evaluation.conditional.first_frame --model RUN --out DIR` gives the model the first frame
of clips that it never saw. The frame must come back as well as the VAE alone returns it (within 1 dB of
PSNR), and what follows must move as real clips do (by optical flow, OpenCV's DIS). What the VAE alone makes
of the real clips stands beside both: more than that no model over its latents can do.

Optical flow follows texture, and reads the very same motion as less where a VAE has smoothed the texture. So
flow is measured twice: on the clips as they are, and on all clips, real ones as well, blurred by `COARSE` of
their height. What still moves then is in both: folds, lumen, instruments. The criterion uses this flow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medsora.data.sheet import contact_sheet, save_image
from medsora.errors import BadInput
from medsora.evaluation.conditional.command import (
    command_parser,
    conclude,
    load_measured,
    run_command,
    sampled,
    through_vae,
    trained_phantom,
)
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED, phantom_clips
from medsora.evaluation.metrics.motion import DIS_NOTE, flow_magnitudes
from medsora.evaluation.sanity.criterion import Criterion
from medsora.evaluation.sanity.degrade import blurred
from medsora.runtime.exit import exit_with_status
from medsora.sampling.conditions import trained_to_begin_with

MAX_LOST_DB = 1.0
COARSE = 1 / 20  # sigma of the blur, as a share of the height
PERCENTILES = (5, 95)  # percentiles of real clips' flow between which the generated ones' median must lie
SHEET_CLIPS = 4


def main() -> None:
    """Run the command line."""
    parser = command_parser(
        "first_frame", __doc__.partition("\n")[0], model="trained with train_dit.first_frame_prob", videos=48
    )
    add = parser.add_argument
    add("--given", type=int, default=1, metavar="G", help="how many first frames (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="(default: %(default)s)")
    run_command(parser, measure)


def measure(options: argparse.Namespace) -> int:
    """Sample, compare, write; return the exit status.

    Raises `BadInput` for a model that was not trained for it.
    """
    pipeline = load_measured(options.model)
    if options.given not in pipeline.config.given_frames:
        raise BadInput(f"{options.model}: {trained_to_begin_with(pipeline.config.given_frames)}.")
    frames, (size, _) = pipeline.config.frames, pipeline.config.size
    phantom = trained_phantom(options.model)
    real, _, _ = phantom_clips(options.cache, options.videos, frames, size, HELD_OUT_SEED, phantom)
    given = real[:, : options.given]
    videos = sampled(pipeline, options, range(options.videos), first_frames=given)
    returned = through_vae(pipeline.vae, real)
    of = {"real": real, "real_through_the_vae": returned, "generated": videos}
    fine = {f"flow_{name}_px": _usual(flow_magnitudes(clips)) for name, clips in of.items()}
    coarse = {
        f"coarse_flow_{name}_px": _usual(flow_magnitudes([blurred(clip, COARSE * size) for clip in clips]))
        for name, clips in of.items()
    }
    low, _, high = coarse["coarse_flow_real_px"]
    results = {
        "psnr_of_the_vae_alone_db": psnr(through_vae(pipeline.vae, given), given),
        "psnr_of_the_given_frames_db": psnr(videos[:, : options.given], given),
        **fine,
        **coarse,
        "flow": DIS_NOTE,
        "videos": options.videos,
        "given": options.given,
        "model": options.model,
        "sampler": options.sampler,
        "steps": options.steps,
        "polyp_size": phantom[0],
        "look": phantom[1],
    }
    rows, begins_with = [], "its first frame" if options.given == 1 else f"its first {options.given} frames"
    for k in range(min(SHEET_CLIPS, options.videos)):
        rows.append((f"clip {k}, phantom (held out)", real[k]))
        rows.append((f"clip {k}, as the VAE alone returns it", returned[k]))
        rows.append((f"clip {k}, made from {begins_with}", videos[k]))
    save_image(options.out / "sheet.png", contact_sheet(rows, columns=9))
    lost = results["psnr_of_the_vae_alone_db"] - results["psnr_of_the_given_frames_db"]
    median = results["coarse_flow_generated_px"][1]
    criteria = (
        Criterion(f"given frames lie {lost:.2f} dB below the VAE alone, at most 1", lost <= MAX_LOST_DB),
        Criterion(
            f"median coarse flow {median:.2f} px lies in phantom clips' (held out) {low:.2f} to {high:.2f}",
            low <= median <= high,
        ),
    )
    return conclude(options.out, results, criteria)


def _usual(flows: np.ndarray) -> list[float]:
    low, high = PERCENTILES
    return np.percentile(flows, (low, 50, high)).tolist()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over clips of the PSNR in dB of uint8 (N, F, H, W, 3) against another."""
    error = np.square(one.astype(np.float64) - other).mean(axis=(1, 2, 3, 4))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


if __name__ == "__main__":
    exit_with_status(main)
