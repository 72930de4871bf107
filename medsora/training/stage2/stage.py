"""The parts of stage 2 and what happens to them between steps: saving, resuming, evaluating, sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import contact_sheet
from medsora.denoiser import MedSora
from medsora.errors import BadInput, Interrupted
from medsora.runtime.files import write_text, written_folder
from medsora.runtime.interruption import StopRequest, any_process
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.synthetic import synthetic_tags
from medsora.training.joint_images import image_latents
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import keep_sheet
from medsora.training.schedule import SampleKey, Schedule
from medsora.training.stage2.block_alignment import BlockAlignment
from medsora.training.stage2.ema import Ema
from medsora.training.stage2.inputs import DitInputs
from medsora.training.stage2.loss import DenoisingLoss
from medsora.training.stage2.samples import DitSamples
from medsora.training.stage_parts import ModelPart, StageParts, ValuePart
from medsora.vae import FrequencyCompensatedVAE

EVALUATION_TIMESTEPS = (50, 250, 500, 750, 950)  # fixed, so that the curves of two runs compare
SAMPLE_FPS = 8


@dataclass
class DitStage:
    """The parts of stage 2; its loop calls `save`, `resume` and `look` between steps."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: DitSamples
    held_out: DitSamples
    model: MedSora
    vae: FrequencyCompensatedVAE
    vae_digest: str
    inputs: DitInputs
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
            self.optimizer,
            names=[name for name, _ in self.model.named_parameters()],
            models={
                "denoiser": ModelPart(self.model.save_pretrained, self.model.load_weights),
                "ema": ModelPart(self.ema.save, self.ema.restore),
            },
            values={
                "vae": ValuePart(lambda step: self.vae_digest, self._check_vae),
                "ema_updates": ValuePart(lambda step: step, self.ema.set_updates, int),
                "alignment": ValuePart(lambda step: self.blocks.state(), self.blocks.restore),
            },
            model_bytes=2 * weights,
        )

    def save(self, step: int) -> None:
        """Write the checkpoint of `step` finished steps (main process; the others wait)."""
        self.parts.save(step, self.config.train_dit, self.config)

    def _check_vae(self, digest: str | None) -> None:
        if digest != self.vae_digest:
            raise BadInput(
                f"{self.run.path} was trained on the latents of another VAE than the one that vae.path or "
                "stage 1 gives now; take another run.name, or put that VAE back to go on with that run."
            )

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; return the number of finished steps.

        Also writes beside it what sampling needs of this run. Raises `BadInput` or `OSError` if the
        checkpoint cannot be taken up by this model, or the VAE is not the one that it was trained with.
        """
        checkpoint = self.run.newest_checkpoint()
        if checkpoint is not None:
            self.parts.take_up(checkpoint)
        if self.run.main:
            with written_folder(self.run.path / "vae") as folder:
                self.vae.save_pretrained(folder)
            described = self.run.path / "pipeline.json"
            text = json.dumps(self.geometry, indent=1, sort_keys=True)
            if not described.is_file() or described.read_bytes() != text.encode():
                with self.run.writing():
                    write_text(described, text)
        if checkpoint is None:
            return 0
        self.run.announce(checkpoint, self.schedule.total_steps)
        return checkpoint.step

    @property
    def geometry(self) -> dict[str, Any]:
        """What a pipeline must know of the clips that the denoiser is trained on."""
        return clip_geometry(self.config, self.samples.clips.labels.names)

    @property
    def clip_labels(self) -> list[int]:
        """The label's number of every training clip."""
        return [self.samples.clips.label(index) for index in range(len(self.samples.clips))]

    def look(self, step: int, stop: StopRequest, *, resumed: bool = False) -> bool:
        """Evaluate and sample if that is due after `step`; return False if `stop` cut the sampling short.

        With `resumed`, before the first step: only what a stop right after the checkpoint of `step` left
        undone; False if there is no time for a step either.
        """
        settings, ends = self.config.train_dit, step == self.schedule.total_steps
        done = True
        if self.run.main and step:
            if (step % settings.eval_every == 0 or ends) and not (
                resumed and self.run.has_logged(step, "held_out/")
            ):
                self.evaluate(step)
            if (step % settings.sample_every == 0 or ends) and not (resumed and self.sheet(step).is_file()):
                done = self.sample(step, stop)
        if step % settings.sample_every and not ends and not resumed:
            return True  # nothing was sampled that could have been cut short: no process waits for the others
        (cut_short,) = any_process(self.accelerator, not done or (resumed and stop.wanted()))
        return not cut_short

    def interrupted(self, step: int, stop: StopRequest) -> Interrupted:
        """Save what is not saved yet and end the training; return what to raise."""
        self.save(step)
        self.accelerator.end_training()
        return Interrupted(f"{stop.why()}; saved after step {step}, the same command goes on from there.")

    def sheet(self, step: int) -> Path:
        """Where the contact sheet of the samples of `step` goes, which is written last."""
        return self.run.samples / f"step-{step:07d}.png"

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Log the EMA's noise error on fixed held-out clips at fixed timesteps with fixed noise."""
        count = min(self.config.train_dit.eval_clips, len(self.held_out.clips))
        batch = self.held_out.collate([self.held_out[SampleKey(i, 0, i)] for i in range(count)])
        errors = {}
        with self.ema.applied() as model:
            model.eval()
            for t in EVALUATION_TIMESTEPS:
                batch["t"] = torch.full((count,), t)
                noised = self.inputs.noised_latents(batch)
                out = model(noised.z_t, noised.latent_t, num_images=noised.num_images, labels=noised.labels)
                errors[f"held_out/mse_t{t}"] = float((out.eps - noised.noise).square().mean())
            model.train()
        errors["held_out/mse"] = sum(errors.values()) / len(errors)
        self.run.log(step, errors)

    def sample(self, step: int, stop: StopRequest) -> bool:
        """Sample a few videos from the EMA weights into samples/; return False if `stop` was wanted."""
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
                ).frames
            except Interrupted:
                return False
            finally:
                model.train()
        folder = self.run.samples / f"step-{step:07d}"
        tags = synthetic_tags(f"{self.run.path.name}, step {step}")
        of_rows = [f", {label}" for label in labels] if labels else [""] * len(frames)
        rows = [(f"seed {k}{of_rows[k]}", video) for k, video in enumerate(frames)]
        with self.run.writing():
            for number, video in enumerate(frames):
                write_video(folder / f"video-{number:05d}.mp4", video, SAMPLE_FPS, metadata=tags)
        keep_sheet(self.run, self.sheet(step), contact_sheet(rows, columns=8), step)
        return True


def clip_geometry(config: Config, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a pipeline must know of the clips that its denoiser was trained on."""
    geometry = {
        "frames": config.data.frames,
        "size": list(config.data.height_width),
        "fps": SAMPLE_FPS,
        "image_latents": image_latents(config),
    }
    if labels:
        geometry["labels"] = list(labels)
    if config.train_dit.first_frame_prob:
        geometry["given_frames"] = sorted(set(config.train_dit.given_frames))
    return geometry
