"""The parts of stage 2: what its checkpoints hold, its evaluation and its samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput, Interrupted, NonFiniteVideo
from medsora.runtime.files import is_file
from medsora.runtime.interruption import StopRequest
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import DEFAULT_FPS
from medsora.training.loop_end import PeriodicTask
from medsora.training.run.described import (
    describe_model,
    keep_samples,
    require_same_labels,
    sheet_path,
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

log = logging.getLogger(__name__)

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
        """Its evaluation, and its samples, which take long enough to be cut short by a request to stop."""
        settings = self.config.train_dit
        return [
            PeriodicTask(
                settings.eval_every,
                lambda step, stop: self.evaluate(step),
                lambda step: self.run.has_logged(step, "held_out/"),
            ),
            PeriodicTask(
                settings.sample_every,
                self.sample,
                lambda step: is_file(sheet_path(self.run, step)),
                interruptible=True,
            ),
        ]

    def _check_vae(self, digest: str | None) -> None:
        if digest != self.vae_digest:
            raise BadInput(
                f"{self.run.path} was trained on the latents of another VAE than the one that vae.path or "
                "stage 1 gives now; take another run.name, or put that VAE back to resume that run."
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
        """Sample a few videos from the EMA weights into samples/; raises `Interrupted` if `stop` wants it.

        Videos that are not finite are left out with a warning: the training itself may be well.
        """
        settings, names = self.config.train_dit, self.samples.clips.labels.names
        labels = [names[k % len(names)] for k in range(settings.sample_videos)] if names else None

        def leave_if_asked(number: int, t: int, z: torch.Tensor) -> None:
            if stop.wanted():
                raise Interrupted

        with self.ema.applied() as model:
            model.eval()
            pipeline = MedSoraPipeline(model, self.vae, **self.geometry)
            pipeline.set_progress_bar_config(disable=True)
            try:
                frames = pipeline(
                    num_videos=settings.sample_videos,
                    num_inference_steps=settings.sample_steps,
                    seeds=list(range(settings.sample_videos)),
                    label=labels,
                    callback=leave_if_asked,
                    output_type="uint8",
                ).frames
            except NonFiniteVideo as error:
                log.warning("no samples after step %d: %s", step, error)
                return
            finally:
                model.train()
        keep_samples(self.run, step, frames, labels, self.geometry["fps"], pipeline.trained_on)


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
