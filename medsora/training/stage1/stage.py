"""The parts of stage 1: what its checkpoints hold, its evaluation, and the trained VAE at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import contact_sheet
from medsora.runtime.files import written_folder
from medsora.saved.checkpoint import save_model
from medsora.saved.find import DEFAULT_FPS
from medsora.saved.manifest import checkpoint_problem, model_files, write_manifest
from medsora.training.loop_end import PeriodicTask
from medsora.training.randomness import generator_for
from medsora.training.run.early_stop import EarlyStop
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import keep_sheet
from medsora.training.schedule import Schedule
from medsora.training.stage1.evaluation import evaluate_reconstruction
from medsora.training.stage_parts import ModelPart, StageParts, ValuePart
from medsora.vae import FrequencyCompensatedVAE, measure_scaling_factor
from medsora.vae.base import load_weights
from medsora.vae.losses import VaeLoss

SHEET_FRAMES = 8
HELD_OUT_LOSS = "held_out/loss"
SCALING_CLIPS = 64  # enough for three digits of the latents' standard deviation


@dataclass
class VaeStage:
    """The parts of stage 1, built and checked before its first step (`build.py`)."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    clips: ClipDataset
    held_out: ClipDataset
    vae: FrequencyCompensatedVAE
    loss: VaeLoss
    optimizer: torch.optim.Optimizer
    schedule: Schedule

    @property
    def parts(self) -> StageParts:
        """Parts of a checkpoint."""
        return StageParts(
            self.run,
            self.config,
            self.config.train_vae,
            self.optimizer,
            names=[name for name, parameter in self.vae.named_parameters() if parameter.requires_grad],
            models={"vae": ModelPart(partial(save_model, self.vae), self._load_vae)},
            values=self.values,
            model_bytes=sum(parameter.nbytes for parameter in self.vae.parameters()),
            early_stop=self.early_stop,
        )

    @property
    def values(self) -> dict[str, ValuePart]:
        """Values in a checkpoint besides the model and the optimiser."""
        return {}

    def compute_loss(self, model: nn.Module, video: Tensor, samples: Tensor) -> NamedTuple:
        """Return the loss's parts on clips (B, F, 3, H, W), whose latents their sample numbers draw."""
        draws = [generator_for(self.config.run.seed, "posterior", int(sample)) for sample in samples]
        out = model(video, generator=draws, coarse=self.config.train_vae.coarse > 0)
        return self.loss(out.reconstruction, video, out.mean, out.logvar, out.coarse)

    def update_codebook(self, done: int, norm: Tensor | float) -> dict[str, float]:
        """Return what to log of a tokenizer's codebook after `done` steps: a VAE has none."""
        return {}

    @property
    def early_stop(self) -> EarlyStop | None:
        """Stops on Eq. 16 of held-out clips."""
        return EarlyStop.of(self.run, self.config.train_vae, HELD_OUT_LOSS)

    @property
    def tasks(self) -> list[PeriodicTask]:
        """Its evaluation, which the untrained VAE gets too: it is what the training has to improve on."""
        return [
            PeriodicTask(
                self.config.train_vae.eval_every,
                lambda step, stop: self.evaluate(step),
                lambda step: self.run.has_logged(step, "held_out/"),
                first_step=0,
            )
        ]

    def _load_vae(self, folder: Path) -> None:
        load_weights(self.vae, folder / "diffusion_pytorch_model.safetensors")

    def resume(self) -> int:
        """Restore the newest complete checkpoint, if there is one; return the number of finished steps."""
        return self.parts.resume(self.schedule)

    def evaluate(self, step: int) -> None:
        """Reconstruct held-out clips with and without the compensation; log metrics, draw the sheet."""
        count = min(self.config.train_vae.eval_clips, len(self.held_out))
        clips = [self.held_out.fixed_clip(index) for index in range(count)]
        metrics, rows = evaluate_reconstruction(self.vae, clips)
        metrics |= self.code_metrics(clips)
        if self.early_stop is not None:
            metrics[HELD_OUT_LOSS] = self.held_out_loss(clips)
        fps = self.clips.report.fps or DEFAULT_FPS
        folder, versions = self.run.samples / f"step-{step:07d}", len(rows) // count
        with self.run.writing():
            for number in range(count):
                side_by_side = [video for _, video in rows[number * versions : (number + 1) * versions]]
                path = folder / f"clip-{number}-and-its-reconstruction.mp4"
                write_video(path, np.concatenate(side_by_side, axis=2), fps)
        keep_sheet(self.run, folder.with_suffix(".png"), contact_sheet(rows, columns=SHEET_FRAMES), step)
        self.run.log(step, metrics)
        values = ", ".join(f"{name.removeprefix('held_out/')} {value:.4g}" for name, value in metrics.items())
        self.run.notify(f"step {step}, held out: {values}")

    def code_metrics(self, clips: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Return the use of a tokenizer's codes on `clips`: a VAE has none."""
        return {}

    @torch.no_grad()
    def held_out_loss(self, clips: Sequence[dict[str, Any]]) -> float:
        """Return the mean of Eq. 16 over `clips`, whose latents are the means instead of draws."""
        was_training, losses = self.vae.training, []
        self.vae.eval()
        for clip in clips:
            video = clip["video"][None].to(self.accelerator.device)
            losses.append(self.loss_without_draws(video))
        self.vae.train(was_training)
        return float(torch.stack(losses).mean())

    def loss_without_draws(self, video: Tensor) -> Tensor:
        """Return Eq. 16 of one clip (1, F, 3, H, W) whose latents are the means."""
        out = self.vae(video, sample=False, coarse=self.config.train_vae.coarse > 0)
        return self.loss(out.reconstruction, video, out.mean, out.logvar, out.coarse).total

    def set_scale(self) -> None:
        """Store the scaling factor of the trained latents, if they changed."""
        if self.config.train_vae.train == "all":
            count, device = min(len(self.clips), SCALING_CLIPS), self.accelerator.device
            clips = (self.clips.fixed_clip(index)["video"][None].to(device) for index in range(count))
            factor = measure_scaling_factor(self.vae, clips)
            factor *= self.config.train_vae.latent_std
            self.vae.set_scaling_factor(factor)
            self.run.notify(f"the scaling factor of these latents is {factor:.4f}.")

    def _take_best(self) -> None:
        if self.early_stop is None or (best := self.early_stop.best()) is None:
            return
        folder = self.run.checkpoints / f"step-{best[0]:07d}"
        if problem := checkpoint_problem(folder):
            self.run.notify(
                f"the VAE of step {best[0]} has the best held-out loss, but its checkpoint is damaged or "
                f"missing ({problem}); that of the last step is taken."
            )
            return
        self._load_vae(folder / "vae")
        self.run.notify(f"the VAE of step {best[0]} has the best held-out loss and is taken.")

    def finish(self) -> Path:
        """Write the trained VAE where stage 2 looks for it, with the scaling factor of its own latents.

        With early stopping it is that of the best evaluation, if its checkpoint is there.
        """
        folder = self.run.path / "final"
        if self.run.main:
            self._take_best()
            self.set_scale()
            with written_folder(folder) as beside:
                save_model(self.vae, beside)
                write_manifest(beside, model_files(beside))
            self.run.notify(f"stage 1 is done: the VAE is in {folder}.")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder
