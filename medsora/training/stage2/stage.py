"""The parts of stage 2: what its checkpoints hold, its evaluation and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput
from medsora.runtime.interruption import StopRequest
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import DEFAULT_FPS
from medsora.training.loop_end import PeriodicTask
from medsora.training.run.described import (
    describe_model,
    evaluation_and_samples,
    keep_samples,
    require_same_labels,
)
from medsora.training.run.early_stop import EarlyStop
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
HELD_OUT_LOSS = "held_out/mse"


@dataclass
class Stage2:
    """The parts of stage 2, built and checked before its first step (`build.py`)."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: Stage2Samples
    held_out: Stage2Samples
    model: Denoiser
    vae: VideoVAE
    vae_digest: str
    inputs: Stage2Inputs
    loss: DenoisingLoss
    optimizer: torch.optim.Optimizer
    ema: Ema
    schedule: Schedule
    blocks: BlockAlignment = field(default_factory=BlockAlignment)

    @property
    def parts(self) -> StageParts:
        """What a checkpoint holds; the VAE is not in it, but it must be the one of before."""
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        return StageParts(
            self.run,
            self.config,
            self.config.train_dit,
            self.optimizer,
            names=[name for name, _ in self.model.named_parameters()],
            models={
                "denoiser": ModelPart(self.model.save_pretrained, self.model.load_weights),
                "ema": ModelPart(self.ema.save, self.ema.restore),
            },
            values={
                "vae": ValuePart(lambda step: self.vae_digest, self._check_vae),
                "labels": ValuePart(lambda step: list(self.samples.clips.labels.names), self._check_labels),
                "ema_updates": ValuePart(lambda step: step, self.ema.set_updates, int),
                "alignment": ValuePart(lambda step: self.blocks.state(), self.blocks.restore),
            },
            model_bytes=2 * weights,
            early_stop=self.early_stop,
        )

    @property
    def early_stop(self) -> EarlyStop | None:
        """Stops on the noise error of held-out clips."""
        return EarlyStop.of(self.run, self.config.train_dit, HELD_OUT_LOSS)

    @property
    def tasks(self) -> list[PeriodicTask]:
        """Its evaluation and its samples."""
        return evaluation_and_samples(self.run, self.config.train_dit, self.evaluate, self.sample)

    def _check_vae(self, digest: str | None) -> None:
        if digest != self.vae_digest:
            raise BadInput(
                f"{self.run.path} was trained on the latents of another VAE than the one that vae.path or "
                "stage 1 gives now; take another run.name, or put that VAE back to go on with that run."
            )

    def _check_labels(self, names: list[str] | None) -> None:
        require_same_labels(self.run, names, self.samples.clips.labels.names)

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; return the number of finished steps.

        Also writes beside it what sampling needs of this run. Raises `BadInput` or `OSError` if the
        checkpoint cannot be taken up by this model, or the VAE is not the one that it was trained with.
        """
        start = self.parts.resume(self.schedule)
        describe_model(self.run, "vae", self.vae, self.geometry, self.samples.clips.report.fps)
        return start

    @property
    def geometry(self) -> dict[str, Any]:
        """What a pipeline must know of the clips that the denoiser is trained on."""
        clips = self.samples.clips
        return clip_geometry(self.config, self.inputs.num_images, clips.labels.names, clips.report.fps)

    @property
    def clip_labels(self) -> list[int]:
        """The label's number of every training clip."""
        return [self.samples.clips.label(index) for index in range(len(self.samples.clips))]

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
        errors[HELD_OUT_LOSS] = sum(errors.values()) / len(errors)
        of_clip["held_out/clip_mse"] = sum(of_clip.values()) / len(of_clip)
        self.run.log(step, errors | of_clip)

    def sample(self, step: int, stop: StopRequest) -> None:
        """Sample a few videos from the EMA weights; see `keep_samples`."""
        settings, names = self.config.train_dit, self.samples.clips.labels.names
        with self.ema.applied() as model:
            model.eval()
            pipeline = MedSoraPipeline(model, self.vae, **self.geometry)
            pipeline.set_progress_bar_config(disable=True)
            steps = settings.sample_steps
            try:
                keep_samples(
                    self.run, step, stop, pipeline, settings.sample_videos, names, num_inference_steps=steps
                )
            finally:
                model.train()


def clip_geometry(
    config: Config, num_images: int, labels: Sequence[str], rate: float | None
) -> dict[str, Any]:
    """Return what a pipeline must know of the clips, `rate` per second, that its denoiser was trained on."""
    geometry = {
        "frames": config.data.frames,
        "size": list(config.data.height_width),
        "fps": rate or DEFAULT_FPS,
        "image_latents": num_images,
        "crop": config.data.crop,
    }
    if config.data.interval:
        geometry["interval"] = config.data.interval
    if rate:
        geometry["rate"] = rate
    if labels:
        geometry["labels"] = list(labels)
    if config.train_dit.first_frame_prob:
        geometry["given_frames"] = sorted(set(config.train_dit.given_frames))
    return geometry
