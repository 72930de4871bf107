"""Did the demo's model learn anything? Its clips beside real ones, an untrained model's, and three cheats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames
from medsora.evaluation.sanity.baselines import Proof, prove
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import trained_vae
from medsora.training.open_clips import clip_spec, open_clips
from medsora.training.stage2.build import build_denoiser

UNTRAINED_STEPS = 25  # a denoiser that knows nothing needs no more


def prove_demo(config: Config, generated: Path) -> Proof | None:
    """Return the proof for the videos in `generated`; None with fewer than two held-out or generated clips.

    The untrained model is the same denoiser before its first step, over the same VAE.
    """
    training, held_out = open_clips(config, Accelerator(cpu=True), clip_spec(config), config.vae_dir)
    made = [read_frames(path) for path in sorted(generated.glob("video-*.mp4"))]
    if min(len(held_out), len(made)) < 2:
        return None
    torch.manual_seed(config.run.seed)
    vae = trained_vae(config)
    height, width = config.data.height_width
    pipe = MedSoraPipeline(
        build_denoiser(config, vae.latent_channels), vae, frames=config.data.frames, size=(height, width)
    )
    pipe.set_progress_bar_config(disable=True)
    seeds = range(min(len(held_out), len(made)))
    untrained = pipe(num_inference_steps=UNTRAINED_STEPS, seeds=seeds, output_type="uint8").frames
    return prove(_clips(training), _clips(held_out), made, list(untrained))


def _clips(dataset: ClipDataset) -> list[np.ndarray]:
    return [video_to_frames(dataset.fixed_clip(index)["video"]) for index in range(len(dataset))]
