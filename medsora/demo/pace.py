"""How much of stage 2 fits into the demo's minutes: processors differ by three times and more."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch

from medsora.config.load import load_config
from medsora.config.schema import Config
from medsora.saved.find import trained_vae
from medsora.training.accelerator import float32_products
from medsora.training.joint_images import image_latents
from medsora.training.stage2.build import build_denoiser

TRIED = 6  # passes that are timed
WHOLE_STEP = 1.25  # a step of training in passes: with its data, losses, optimiser, looks at held-out clips
SAMPLING = 150  # what follows stage 2, in passes
AT_MOST = 2.2  # times the config's steps: more would show the few clips again and again


def paced(config: Config, seconds: float) -> Config:
    """`config` with as many steps of stage 2 as it and sampling take about `seconds` for on this machine.

    Never fewer than `config` has. A run that has begun keeps its number.
    """
    begun = config.dit_dir / "config.yaml"
    if begun.is_file():
        steps = load_config(begun, outputs_anywhere=True).train_dit.max_steps
    else:
        fit = int((seconds / seconds_of_a_pass(config) - SAMPLING) / WHOLE_STEP)
        steps = steps_for(config.train_dit.max_steps, fit)
    return dataclasses.replace(config, train_dit=dataclasses.replace(config.train_dit, max_steps=steps))


def steps_for(fewest: int, fit: int) -> int:
    """`fit` in whole fifties, but neither fewer than `fewest` nor more than `AT_MOST` times that."""
    return max(fewest, min(fit // 50 * 50, int(AT_MOST * fewest)))


def seconds_of_a_pass(config: Config) -> float:
    """Median duration of a forward and backward of the config's denoiser at stage 2's batch, without data."""
    vae = trained_vae(config)
    model = build_denoiser(config, vae.latent_channels).train()
    clip, *of_one = vae.latent_shape(config.data.frames, *config.data.height_width)
    images = image_latents(config, vae)
    z = torch.randn(config.train_dit.phases[0].batch, clip + images, *of_one)
    t = torch.full(z.shape[:1], 500)
    durations = []
    with float32_products(config.train_dit.matmul_precision):
        for _ in range(1 + TRIED):
            start = time.perf_counter()
            out = model(z, t, num_images=images)
            (out.eps.square().mean() + out.variance.square().mean()).backward()
            durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])
