"""The parts of stage 2: what its checkpoints hold, its evaluation and its samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from medsora.config.schema import Config
from medsora.denoiser.base import Denoiser
from medsora.runtime.interruption import StopRequest
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.checkpoint import save_model
from medsora.training.run.described import GeneratorStage, keep_samples
from medsora.training.run.folder import RunFolder
from medsora.training.schedule import SampleKey, Schedule
from medsora.training.stage2.block_alignment import BlockAlignment
from medsora.training.stage2.ema import Ema
from medsora.training.stage2.inputs import Stage2Inputs
from medsora.training.stage2.loss import DenoisingLoss
from medsora.training.stage2.samples import Stage2Samples
from medsora.training.stage_parts import ModelPart, StageParts, ValuePart
from medsora.vae import VideoVAE

EVALUATION_TIMESTEPS = (50, 250, 500, 750, 950)  # fixed, so curves of different runs are comparable


@dataclass
class Stage2(GeneratorStage):
    """The parts of stage 2, built and checked before its first step (`build.py`)."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: Stage2Samples
    held_out: Stage2Samples
    model: Denoiser
    vae: VideoVAE
    decoder_digest: str
    inputs: Stage2Inputs
    loss: DenoisingLoss
    optimizer: torch.optim.Optimizer
    ema: Ema
    schedule: Schedule
    blocks: BlockAlignment = field(default_factory=BlockAlignment)
    held_out_loss: ClassVar = "held_out/mse"
    other_decoder: ClassVar = "was trained on the latents of another VAE"

    @property
    def parts(self) -> StageParts:
        """Parts of a checkpoint; without the VAE, which must be the same when a run resumes."""
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        return StageParts(
            self.run,
            self.config,
            self.config.train_dit,
            self.optimizer,
            names=[name for name, _ in self.model.named_parameters()],
            models={
                "denoiser": ModelPart(partial(save_model, self.model), self.model.load_weights),
                "ema": ModelPart(self.ema.save, self.ema.restore),
            },
            values={
                "vae": ValuePart(lambda step: self.decoder_digest, self.require_same_decoder),
                "labels": ValuePart(lambda step: list(self.labels), self.require_same_labels),
                "ema_updates": ValuePart(lambda step: step, self.ema.set_updates, int),
                "alignment": ValuePart(lambda step: self.blocks.state(), self.blocks.restore),
            },
            model_bytes=2 * weights,
            early_stop=self.early_stop,
        )

    @property
    def decoder(self) -> tuple[str, nn.Module]:
        """The VAE, in the run's folder of that name."""
        return "vae", self.vae

    @property
    def geometry(self) -> dict[str, Any]:
        """Geometry of the training clips, for a pipeline."""
        geometry, settings = self.clip_geometry() | {"image_latents": self.inputs.num_images}, self.settings
        if settings.first_frame_prob:
            geometry["given_frames"] = sorted(set(settings.given_frames))
        return geometry

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Log the EMA's noise error on fixed held-out clips at fixed timesteps with fixed noise."""
        count = min(self.config.train_dit.eval_clips, len(self.held_out.clips))
        batch = self.held_out.collate([self.held_out[SampleKey(i, 0, i)] for i in range(count)])
        errors, of_clip = {}, {}
        with self.ema.applied() as model:
            model.eval()
            for t in EVALUATION_TIMESTEPS:
                batch["t"] = torch.full((count,), t)
                noised = self.inputs.noised_latents(batch)
                out = model(noised.z_t, noised.latent_t, num_images=noised.num_images, labels=noised.labels)
                error = (out.eps - noised.noise).square()
                errors[f"held_out/mse_t{t}"] = float(error.mean())
                clip = error[:, : error.shape[1] - noised.num_images]
                of_clip[f"held_out/clip_mse_t{t}"] = float(clip.mean())
            model.train()
        errors[self.held_out_loss] = sum(errors.values()) / len(errors)
        of_clip["held_out/clip_mse"] = sum(of_clip.values()) / len(of_clip)
        self.run.log(step, errors | of_clip)

    def sample(self, step: int, stop: StopRequest) -> None:
        """Sample a few videos from the EMA weights; see `keep_samples`."""
        settings = self.settings
        with self.ema.applied() as model:
            model.eval()
            pipeline = MedSoraPipeline(model, self.vae, **self.geometry)
            pipeline.set_progress_bar_config(disable=True)
            options = {"num_inference_steps": settings.sample_steps}
            try:
                keep_samples(self.run, step, stop, pipeline, settings.sample_videos, self.labels, **options)
            finally:
                model.train()
