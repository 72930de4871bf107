"""Steps of stage 2 that fit into the demo's minutes: processors differ by a factor of three and more."""

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

TIMED_PASSES = 6
PASSES_PER_STEP = 1.25  # a training step with data, losses, optimiser and evaluations, in passes
PASSES_OF_SAMPLING = 150  # sampling and all later work, in denoiser passes
MAX_TIMES = 2.2  # maximum steps, times the config's: more would repeat the few clips too often


def paced(config: Config, seconds: float) -> Config:
    """Return `config` with as many steps of stage 2 as fit, with sampling, into `seconds` on this machine.

    In whole fifties, from those that `config` has to `MAX_TIMES` times that. A begun run keeps its number.
    """
    begun = config.dit_dir / "config.yaml"
    if begun.is_file():
        steps = load_config(begun, outputs_anywhere=True).train_dit.max_steps
    else:
        fit = int((seconds / seconds_of_a_pass(config) - PASSES_OF_SAMPLING) / PASSES_PER_STEP)
        fewest = config.train_dit.max_steps
        steps = max(fewest, min(fit // 50 * 50, int(MAX_TIMES * fewest)))
    return _with_steps(config, steps)


def shortened(config: Config, seconds: float) -> Config:
    """Return `config` with as many steps of stage 2 as fit into `seconds`, at most its own number.

    Its learning rate then reaches the end of its decay; where a time limit ends a run, it does not.
    """
    fit = int(seconds / seconds_of_a_pass(config) / PASSES_PER_STEP)
    return _with_steps(config, max(1, min(fit, config.train_dit.max_steps)))


def _with_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, train_dit=dataclasses.replace(config.train_dit, max_steps=steps))


def seconds_of_a_pass(config: Config) -> float:
    """Return the median duration of a forward and backward at stage 2's batch, without data."""
    vae = trained_vae(config)
    model = build_denoiser(config, vae.latent_channels).train()
    clip, *of_one = vae.latent_shape(config.data.frames, *config.data.height_width)
    images = image_latents(config, vae)
    z = torch.randn(config.train_dit.phases[0].batch, clip + images, *of_one)
    t = torch.full(z.shape[:1], 500)
    durations = []
    with float32_products(config.train_dit.matmul_precision):
        for _ in range(1 + TIMED_PASSES):
            start = time.perf_counter()
            out = model(z, t, num_images=images)
            (out.eps.square().mean() + out.variance.square().mean()).backward()
            durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])
