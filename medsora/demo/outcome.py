"""Outcome of a demo: whether training from scratch learned anything, or how far fine-tuning went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import FrechetMeasure
from medsora.evaluation.metrics.motion import MotionMeasure
from medsora.evaluation.metrics.pixel import PixelMeasure
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.sanity.baselines import COLUMNS, PYRAMID, REAL, Outcome, compare_with_baselines
from medsora.evaluation.sanity.criterion import Criterion
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import trained_vae
from medsora.training.open_clips import clip_spec, open_clips
from medsora.training.run.folder import read_log
from medsora.training.stage2.build import build_denoiser

UNTRAINED_STEPS = 25  # an untrained denoiser needs no more
COLOUR = "colour_distance"
BEFORE, AFTER = "shipped model", "after fine-tuning"
MIN_CLOSED = 1 / 3  # share of the distance to the new look that fine-tuning must close
MIN_GAIN_DB = 0.1


def score_demo(config: Config, generated: Path) -> Outcome | None:
    """Return the scores of the videos in `generated`; None with fewer than two held-out or generated clips.

    The untrained model is the same denoiser before its first step, over the same VAE.
    """
    training, held_out = _clips(config)
    made = read_videos(generated)
    if min(len(held_out), len(made)) < 2:
        return None
    torch.manual_seed(config.run.seed)
    vae = trained_vae(config)
    denoiser, clip = build_denoiser(config, vae.latent_channels), config.data
    pipe = MedSoraPipeline(denoiser, vae, frames=clip.frames, size=clip.height_width)
    pipe.set_progress_bar_config(disable=True)
    seeds = range(min(len(held_out), len(made)))
    untrained = pipe(num_inference_steps=UNTRAINED_STEPS, seeds=seeds, output_type="uint8").frames
    return compare_with_baselines(training, held_out, made, list(untrained))


def score_fine_tuning(config: Config, before: Path, after: Path) -> Outcome | None:
    """Compare the distances of the videos in `before` and in `after` to the config's clips.

    None with fewer than three clips in any set. Stage 1's gain is read from its log.
    """
    training, held_out = _clips(config)
    ours, theirs = read_videos(before), read_videos(after)
    if min(len(held_out), len(ours), len(theirs)) < 3:
        return None
    log = [line["held_out/psnr"] for line in read_log(config.vae_dir) if "held_out/psnr" in line]
    return compare_looks(training, held_out, ours, theirs, psnr_db=(log[0], log[-1]))


def compare_looks(
    target: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    psnr_db: tuple[float, float],
) -> Outcome:
    """Compare sets of clips, uint8 (F, H, W, 3), with those of the new look by colour and by the pyramid.

    A third of either distance must be closed even without the pair of clips, one before and one after, that
    favours fine-tuning most. `psnr_db` is that of held-out reconstructions before and after stage 1.
    """
    count = min(len(held_out), len(before), len(after))
    sets = {REAL: held_out[:count], BEFORE: before[:count], AFTER: after[:count]}
    pyramid = FrechetMeasure(PYRAMID, COLUMNS[PYRAMID], PyramidExtractor())
    columns = {COLOUR: "colour distance, of 255", **COLUMNS}
    table: dict[str, dict[str, float]] = {name: {} for name in sets}
    closed: dict[str, list[float]] = {COLOUR: [], PYRAMID: []}  # by the clip that is left out
    for measure in (PixelMeasure(), pyramid, MotionMeasure()):
        reference = Features.of_clips(measure.extractor, target)
        features = {name: Features.of_clips(measure.extractor, clips) for name, clips in sets.items()}
        for name, of_set in features.items():
            table[name] |= measure.compare(reference, of_set) | measure.describe(of_set)
        for left_out in range(count):
            others = (np.arange(count) != left_out).astype(float)
            far, near = (
                measure.compare(reference, features[name].reweighted(others)) for name in (BEFORE, AFTER)
            )
            for key in closed.keys() & far.keys():
                closed[key].append(1 - near[key] / far[key])
    criteria = [
        Criterion(
            f"{columns[key]}: fine-tuning closed {1 - table[AFTER][key] / table[BEFORE][key]:.0%} of the way "
            f"to the new look ({min(closed[key]):.0%} at least, whichever clip is left out); a third is "
            "needed",
            min(closed[key]) >= MIN_CLOSED,
        )
        for key in (COLOUR, PYRAMID)
    ]
    first, last = psnr_db
    criteria.append(
        Criterion(
            f"stage 1 improves on its base: PSNR of held-out clips {number_text(first)} dB before, "
            f"{number_text(last)} dB after, {MIN_GAIN_DB} dB more are needed",
            last >= first + MIN_GAIN_DB,
        )
    )
    table = {name: {key: row[key] for key in columns} for name, row in table.items()}
    return Outcome(table, None, criteria, columns)


def read_videos(folder: Path) -> list[np.ndarray]:
    """Read the videos that sampling left in `folder`, each uint8 (F, H, W, 3)."""
    return [read_frames(path, intact=True) for path in sorted(folder.glob("video-*.mp4"))]


def _clips(config: Config) -> list[list[np.ndarray]]:
    """Return the clips to train on and the held-out ones."""
    sides = open_clips(config, Accelerator(cpu=True), clip_spec(config), config.vae_dir)
    return [[video_to_frames(side.fixed_clip(k)["video"]) for k in range(len(side))] for side in sides]
