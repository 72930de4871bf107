"""Shared parts of the commands that measure a conditional model: options, model, results, exit status."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from medsora.config.choices import SAMPLERS
from medsora.config.load import load_config
from medsora.data.phantom import KINDS
from medsora.data.reading.pixels import frames_to_video, video_to_frames
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.evaluation.conditional.fresh_phantom import DEFAULT_PHANTOM
from medsora.evaluation.sanity.criterion import Criterion
from medsora.runtime.digests import sealed
from medsora.runtime.files import write_json
from medsora.runtime.malloc import keep_freed_memory
from medsora.runtime.processes import join_group
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.run import pipeline_class
from medsora.saved.find import MEDSORA, find_model
from medsora.saved.pipeline import SavedPipeline
from medsora.vae import VideoVAE, VQTokenizer

STATUSES = "exit status: 0 all criteria are met, 1 one is not, 2 invalid input, 75 interrupted"
CLIPS_AT_ONCE = 8  # through the VAE
LIMITS = dict.fromkeys(("videos", "steps", "frames", "window", "epochs"), (1, math.inf))
LIMITS |= dict.fromkeys(("training_clips", "held_out_clips", "judge_clips"), (len(KINDS), math.inf))


def command_parser(
    name: str, description: str, *, model: str, videos: int, model_required: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of `python -m medsora.evaluation.conditional.NAME`; `model` is --model's help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m medsora.evaluation.conditional.{name}", description=description, epilog=STATUSES
    )
    add = parser.add_argument
    add("--model", required=model_required, metavar="RUN_OR_FOLDER", help=model)
    add("--out", required=True, type=Path, metavar="DIR", help="where results.json and the sheets go")
    add("--videos", type=int, default=videos, metavar="N", help="how many to sample (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="(default: %(default)s)")
    add("--steps", type=int, default=50, metavar="N", help="sampling steps (default: %(default)s)")
    return parser


def run_command(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], int]) -> NoReturn:
    """Parse the command line, measure, and exit with the status; raises `BadInput` for a number too small."""
    options = parser.parse_args()
    check_limits(options, LIMITS)
    sys.exit(measure(options))


def trained_phantom(model: str | None) -> tuple[float, str]:
    """Return the width of polyps and the look of the phantom that a run, its VAE or a checkpoint trained on.

    The usual ones for any other model.
    """
    if model is not None and Path(model).exists():  # the parents of a hub name would be the working folder
        named = Path(model).resolve()
        for folder in (named, named / "vae", *named.parents[:2]):
            if (folder / "config.yaml").is_file():
                phantom = load_config(folder / "config.yaml", outputs_anywhere=True).phantom
                return phantom.polyp_size, phantom.look
    return DEFAULT_PHANTOM


def load_measured(model: str, *, any_kind: bool = False) -> SavedPipeline:
    """Return the pipeline of a run or folder, on the GPU if there is one; `any_kind`: not MedSora's only.

    Raises `BadInput`.
    """
    keep_freed_memory()
    with bad_input_from_errors():
        folder = find_model(model)
        pipeline = pipeline_class(folder.kind if any_kind else MEDSORA).from_folder(folder)
    return pipeline.to(join_group().device)


def load_labelled(model: str, *, any_kind: bool = False) -> SavedPipeline:
    """Return `load_measured`'s pipeline. Raises `BadInput` too for one without the phantom's labels."""
    pipeline, labels = load_measured(model, any_kind=any_kind), sorted(KINDS)
    if not pipeline.labels:
        raise BadInput(f"{model} was trained without labels (data.labels): nothing to measure.")
    if pipeline.labels != labels:
        theirs = ", ".join(pipeline.labels)
        raise BadInput(f"{model} has the labels {theirs}, the phantom {', '.join(labels)}.")
    return pipeline


def sampled(
    pipeline: SavedPipeline, options: argparse.Namespace, seeds: Sequence[int], **conditions: Any
) -> np.ndarray:
    """Return a video per seed, uint8 (N, F, H, W, 3), sampled with the options.

    `conditions` are other arguments of the pipeline. Sampler and steps count for diffusion alone.
    """
    if isinstance(pipeline, MedSoraPipeline):
        conditions |= {"num_inference_steps": options.steps, "sampler": options.sampler}
    return pipeline(seeds=seeds, output_type="uint8", **conditions).frames


@torch.no_grad()
def through_vae(vae: VideoVAE | VQTokenizer, clips: np.ndarray) -> np.ndarray:
    """Return reconstructions by `vae` of clips uint8 (N, F, H, W, 3)."""
    parts = []
    for part in np.array_split(clips, -(-len(clips) // CLIPS_AT_ONCE)):
        video = frames_to_video(part).to(vae.device, vae.dtype)
        parts.append(video_to_frames(vae.reconstruct(video)))
    return np.concatenate(parts)


def conclude(out: Path, results: dict[str, Any], criteria: Sequence[Criterion]) -> int:
    """Write `results.json` into `out`, print it and the criteria; return the exit status."""
    write_json(out / "results.json", sealed(results))
    for name, value in results.items():
        print(f"{name}: {value}")
    for criterion in criteria:
        print(criterion)
    return int(not all(criterion.met for criterion in criteria))
