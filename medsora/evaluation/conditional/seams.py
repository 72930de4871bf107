"""Are the joints of a film visible?

`python -m medsora.evaluation.conditional.seams --model RUN --out DIR --frames 64`

Films are rolled out in overlapping windows. Between every two neighbouring frames the warping error is taken
(optical flow by OpenCV's DIS, occlusions left out). Its mean over the joints, where a window's first new
frame follows, must be at most 1.2 times that inside the windows, of the pairs that lead from one latent to
the next as a joint does: the VAE makes the frames of one latent smoother among themselves, film or no film.
The ratio to all other pairs is written down too, and the mean of every pair.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from medsora.data.reading.pixels import frames_to_video
from medsora.data.sheet import contact_sheet, save_image
from medsora.errors import BadInput
from medsora.evaluation.conditional.command import (
    command_parser,
    conclude,
    load_measured,
    run_command,
    sampled,
)
from medsora.evaluation.metrics.motion import DIS_NOTE, occluded, warping_error
from medsora.evaluation.sanity.criterion import Criterion
from medsora.flow_prior import DisEstimator
from medsora.runtime.exit import exit_with_status
from medsora.sampling.conditions import FilmPlan, plan_film

MAX_AT_JOINTS = 1.2
SHEET_FILMS = 4


def main() -> None:
    """Run the command line."""
    parser = command_parser(
        "seams", __doc__.partition("\n")[0], model="trained with train_dit.first_frame_prob", videos=16
    )
    add = parser.add_argument
    add("--frames", type=int, default=64, metavar="F", help="frames of a video (default: %(default)s)")
    add("--window", type=int, metavar="W", help="frames of a window (default: the model's own length)")
    run_command(parser, measure)


def measure(options: argparse.Namespace) -> int:
    """Sample, compare, write; return the exit status. Raises `BadInput` for a film that is no roll-out."""
    pipeline = load_measured(options.model)
    window = options.window or pipeline.config.frames
    plan = plan_film(options.frames, window, pipeline.config.given_frames, pipeline.vae.frames_per_chunk)
    if plan.windows < 2:
        raise BadInput(
            f"a film of {plan.frames} frames in a window of {window} has no joint; raise --frames."
        )
    films = sampled(pipeline, options, range(options.videos), frames=options.frames, window=window)
    errors = np.stack([warping_errors(film) for film in films])
    joints, alike = joints_of(plan), pairs_like_joints(plan, pipeline.vae.frames_per_latent)
    at_joints, inside, elsewhere = (
        float(np.nanmean(part))
        for part in (errors[:, joints], errors[:, alike], np.delete(errors, joints, axis=1))
    )
    results = {
        "warping_error_at_joints_of_255": at_joints,
        "warping_error_inside_from_latent_to_latent_of_255": inside,
        "warping_error_of_all_other_pairs_of_255": elsewhere,
        "joints_to_inside": at_joints / inside,
        "joints_to_all_other_pairs": at_joints / elsewhere,
        "per_pair": np.nanmean(errors, axis=0).round(3).tolist(),
        "flow": DIS_NOTE,
        "plan": vars(plan),
        "videos": options.videos,
        "model": options.model,
        "sampler": options.sampler,
        "steps": options.steps,
    }
    rows = [(f"film {k}, {plan.frames} frames", film) for k, film in enumerate(films[:SHEET_FILMS])]
    save_image(options.out / "sheet.png", contact_sheet(rows, columns=16))
    ratio = results["joints_to_inside"]
    sentence = f"joints show {ratio:.2f} times the error inside, at most 1.2"
    return conclude(options.out, results, [Criterion(sentence, ratio <= MAX_AT_JOINTS)])


def warping_errors(film: np.ndarray) -> np.ndarray:
    """Return the warping error, of 255, of each pair of neighbours in a film (F, H, W, 3): (F-1,)."""
    video, estimator = frames_to_video(film)[None], DisEstimator()
    with torch.no_grad():
        forward = estimator(video)[0].numpy()
        backward = estimator(video.flip(1)).flip(1)[0].numpy()
    visible = ~occluded(forward, backward)
    return np.array(
        [warping_error(film[k : k + 2], forward[k : k + 1], visible[k : k + 1]) for k in range(len(film) - 1)]
    )


def joints_of(plan: FilmPlan) -> np.ndarray:
    """Return which pairs (k: frames k and k+1) of a film lead to the first new frame of a window."""
    return np.arange(plan.window - 1, plan.frames - 1, plan.window - plan.overlap)


def pairs_like_joints(plan: FilmPlan, frames_per_latent: int) -> np.ndarray:
    """Return the other pairs that lead, as joints do, from the last frame of one latent to the next one."""
    pairs = np.arange((plan.window - 1) % frames_per_latent, plan.frames - 1, frames_per_latent)
    return np.setdiff1d(pairs, joints_of(plan))


if __name__ == "__main__":
    exit_with_status(main)
