"""Stage 2's step as `medsora.training.stage2.loop` takes it, one call at a time, on the same parts."""

from __future__ import annotations

import dataclasses

import torch

from medsora.config.schema import Config
from medsora.config.shipped import shipped_file
from medsora.training.accelerator import clipped_norm, float32_products
from medsora.training.batches import TimedBatches
from medsora.training.fill_caches import fill_caches
from medsora.training.schedule import StepBatches
from medsora.training.stage2.build import build_denoiser_stage
from medsora.vae import FrequencyCompensatedVAE


class Stage2Step:
    """Called, it takes the next of `steps` steps; caches that the config switches on are filled before.

    The VAE is the config's base with an untrained compensation: it costs what a trained one costs.
    """

    def __init__(self, config: Config, steps: int) -> None:
        vae = FrequencyCompensatedVAE.from_base(
            shipped_file(config.vae.base), weights=shipped_file(config.vae.weights)
        )
        vae.save_pretrained(config.vae_dir / "final")
        quiet = dataclasses.replace(config.tracking, trackers=[])
        self.config = dataclasses.replace(config, tracking=quiet)
        if config.cache.latents == "disk":
            fill_caches(self.config)
        self.stage = build_denoiser_stage(self.config)
        order = StepBatches(self.stage.schedule, config.run.seed)
        samples = self.stage.samples
        self.batches = TimedBatches(samples, order, config.data.workers, collate=samples.collate)
        self.batch = self.stage.schedule.step(0).batch
        self.left = steps

    def __call__(self) -> None:
        """Take one step. Raises `RuntimeError` when none is left."""
        if not self.left:
            raise RuntimeError("no step is left: build it for more steps")
        self.left -= 1
        with float32_products(self.config.train_dit.matmul_precision):
            self._step()

    def _step(self) -> None:
        stage, settings = self.stage, self.config.train_dit
        stage.model.train()
        batch = self.batches.next()
        noised = stage.inputs.noised_latents(batch)
        targets = stage.inputs.alignment_targets(batch)
        stage.loss(stage.model, noised, targets).total.backward()
        norm = clipped_norm(stage.accelerator, stage.model, settings.clip_norm)
        if not torch.isfinite(norm):
            raise RuntimeError("the benchmark's training diverged")
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        stage.ema.update()
