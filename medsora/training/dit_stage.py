"""Everything that stage 2 needs, built and checked before its first step; saving, resuming, evaluating."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flow_prior import FlowPrior
from medsora.config import Config
from medsora.data.sheet import contact_sheet, save_image
from medsora.data.video_io import write_video
from medsora.denoiser import MedSora
from medsora.diffusion import GaussianDiffusion
from medsora.pipeline import MedSoraPipeline
from medsora.training.checkpoint import (
    latest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    write_json,
)
from medsora.training.clips import open_clips
from medsora.training.dit_inputs import DitInputs, image_latents
from medsora.training.dit_samples import DitSamples
from medsora.training.ema import Ema
from medsora.training.latent_cache import LatentCache
from medsora.training.prior_cache import PriorCache
from medsora.training.run_folder import RunFolder
from medsora.training.schedule import SampleKey, Schedule
from medsora.training.setup import make_accelerator, start_trackers
from medsora.training.vae_choice import trained_vae
from vae import FrequencyCompensatedVAE, check_video_shape

EVALUATION_TIMESTEPS = (50, 250, 500, 750, 950)  # fixed, so that the curves of two runs compare
SAMPLE_FPS = 8


@dataclass
class DitStage:
    """The parts of stage 2; its loop calls `save`, `resume`, `evaluate` and `sample` between steps."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: DitSamples
    held_out: DitSamples
    model: MedSora
    vae: FrequencyCompensatedVAE
    diffusion: GaussianDiffusion
    inputs: DitInputs
    optimizer: torch.optim.Optimizer
    ema: Ema
    schedule: Schedule

    def save(self, step: int) -> None:
        """Write the checkpoint of `step` finished steps (main process; the others wait)."""
        if self.run.main:
            settings = self.config.train_dit
            scaler = self.accelerator.scaler

            def write_models(folder: Path) -> None:
                self.model.save_pretrained(folder / "denoiser")
                self.ema.save(folder / "ema")

            save_checkpoint(
                self.run.checkpoints,
                step,
                write_models,
                optimizer_tensors(self.optimizer, self.parameter_names),
                {"scaler": scaler.state_dict() if scaler else None, "ema_updates": self.ema.updates},
                keep=settings.keep,
                keep_every=settings.keep_every,
            )
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; return the number of finished steps."""
        checkpoint = latest_checkpoint(self.run.checkpoints, self.run.say)
        if checkpoint is None:
            return 0
        self.model.load_weights(checkpoint.folder / "denoiser")
        self.ema.restore(checkpoint.folder / "ema", checkpoint.state["ema_updates"])
        restore_optimizer(self.optimizer, self.parameter_names, checkpoint.folder / "optimizer.safetensors")
        if self.accelerator.scaler and checkpoint.state["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.run.cut_log(checkpoint.step)
        self.run.say(f"going on after step {checkpoint.step} of {self.schedule.total_steps}.")
        return checkpoint.step

    @property
    def parameter_names(self) -> list[str]:
        """The trained parameters' names, in the optimiser's order."""
        return [name for name, _ in self.model.named_parameters()]

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Log the EMA's noise error on fixed held-out clips at fixed timesteps with fixed noise."""
        if self.run.main:
            count = min(self.config.train_dit.eval_clips, len(self.held_out.clips))
            batch = self.held_out.collate([self.held_out[SampleKey(i, 0, i)] for i in range(count)])
            errors = {}
            with self.ema.applied() as model:
                model.eval()
                for t in EVALUATION_TIMESTEPS:
                    batch["t"] = torch.full((count,), t)
                    noised = self.inputs.noised_latents(batch)
                    out = model(noised.z_t, noised.t, num_images=noised.num_images)
                    errors[f"held_out/mse_t{t}"] = float((out.eps - noised.noise).square().mean())
                model.train()
            errors["held_out/mse"] = sum(errors.values()) / len(errors)
            self.run.log(step, errors)
        self.accelerator.wait_for_everyone()

    def sample(self, step: int) -> None:
        """Sample a few videos from the EMA weights; write them and a contact sheet to samples/."""
        if self.run.main:
            settings = self.config.train_dit
            with self.ema.applied() as model:
                model.eval()
                pipeline = MedSoraPipeline(model, self.vae, **clip_geometry(self.config))
                pipeline.set_progress_bar_config(disable=True)
                frames = pipeline(
                    num_videos=settings.sample_videos,
                    num_inference_steps=settings.sample_steps,
                    seeds=list(range(settings.sample_videos)),
                ).frames
                model.train()
            folder = self.run.samples / f"step-{step:07d}"
            for number, video in enumerate(frames):
                tags = {"comment": f"synthetic: generated by MedSora, {self.run.path.name}, step {step}"}
                write_video(folder / f"video-{number:05d}.mp4", video, SAMPLE_FPS, metadata=tags)
            rows = [(f"seed {number}", video) for number, video in enumerate(frames)]
            save_image(self.run.samples / f"step-{step:07d}.png", contact_sheet(rows, columns=8))
        self.accelerator.wait_for_everyone()


def clip_geometry(config: Config) -> dict[str, Any]:
    """Return what a pipeline must know of the clips that its denoiser was trained on."""
    return {
        "frames": config.data.frames,
        "size": list(config.data.height_width),
        "fps": SAMPLE_FPS,
        "image_latents": image_latents(config),
    }


def build_prior(config: Config, depth: int, run: RunFolder) -> FlowPrior:
    """Return the flow prior that the config names, paired with the denoiser's `depth` blocks."""
    prior = FlowPrior.build(
        config.flow.estimator,
        config.dino.model,
        depth,
        flow_weights=config.flow.weights,
        dino_weights=config.dino.weights,
        averaging=config.alignment.averaging,
    )
    if prior.untrained:
        run.say("the flow prior is untrained (dino.weights: random): its alignment teaches nothing.")
    return prior.eval().requires_grad_(False)


def build_dit_stage(config: Config) -> DitStage:
    """Build everything; raises `ValueError` or `OSError` for whatever cannot be used."""
    settings = config.train_dit
    accelerator = make_accelerator(config, settings.precision, str(config.dit_dir))
    vae = trained_vae(config)
    check_video_shape(config.data.frames, *config.data.height_width)
    aligned = config.alignment.weight > 0
    clips, held_out = open_clips(
        config,
        accelerator,
        extra_frame=True,
        images=config.images.count,
        with_flow=aligned and config.flow.estimator == "exact",
    )
    schedule = Schedule(
        settings.phases,
        len(clips),
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        warmup_steps=settings.warmup_steps,
        lr_decay=settings.lr_decay,
    )
    schedule.check_processes(accelerator.num_processes, settings.accumulation)
    model = MedSora.from_preset(
        config.denoiser.preset,
        **{
            "in_channels": vae.latent_channels,
            "mixing": config.denoiser.mixing,
            "backend": config.denoiser.backend,
            **config.denoiser.overrides,
        },
    )
    if config.denoiser.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    run = RunFolder(config.dit_dir, config, "train_dit", accelerator)
    vae.to(accelerator.device)
    prior = build_prior(config, model.config.depth, run).to(accelerator.device) if aligned else None
    diffusion = GaussianDiffusion()
    latents = None
    if config.cache.latents == "disk":
        latents = LatentCache(config, clips, vae)
        latents.build(vae, accelerator)
    height, width = config.data.height_width
    side = 8 * model.config.patch
    grid = (height // side, width // side)
    priors = None
    if prior is not None and latents is not None and config.cache.prior == "disk":
        priors = PriorCache(config, clips, prior, grid, model.config.width)
        run.say(f"the cache of prior features may grow to {priors.disk_bytes / 2**20:.0f} MiB.")
    if run.main:
        vae.save_pretrained(run.path / "vae")
        write_json(run.path / "pipeline.json", clip_geometry(config))
    start_trackers(accelerator, run, config)
    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.phases[0].lr,
        betas=tuple(settings.betas),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return DitStage(
        config=config,
        accelerator=accelerator,
        run=run,
        samples=DitSamples(config, clips, steps=diffusion.steps, latents=latents, priors=priors),
        held_out=DitSamples(config, held_out, steps=diffusion.steps, draw=False),
        model=model,
        vae=vae,
        diffusion=diffusion,
        inputs=DitInputs(config, vae, diffusion, prior, priors, accelerator.device, grid, model.config.width),
        optimizer=optimizer,
        ema=Ema(model, settings.ema_decay),
        schedule=schedule,
    )
