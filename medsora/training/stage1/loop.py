"""Stage 1: fine-tune the frequency-compensated VAE on clips (§3.3, Eq. 16); the step loop is `train_vae`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.config.shipped import shipped_file
from medsora.data.clips import ClipDataset
from medsora.errors import Interrupted, building
from medsora.runtime.files import written_folder
from medsora.runtime.interruption import StopRequest, any_process
from medsora.runtime.processes import losses_said
from medsora.training.accelerator import (
    check_same_run,
    clipped_norm,
    gradients_synchronised,
    make_accelerator,
    set_learning_rate,
)
from medsora.training.batches import NumberedClips, TimedBatches, sent
from medsora.training.open_clips import open_clips
from medsora.training.progress import Progress
from medsora.training.randomness import derive_seed, generator_for
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import RunReport, keep_sheet
from medsora.training.run.trackers import start_trackers
from medsora.training.schedule import Schedule, StepBatches
from medsora.training.stage1.crops import check_crop, random_crops
from medsora.training.stage1.evaluation import evaluate_reconstruction
from medsora.training.stage_parts import ModelPart, StageParts
from medsora.training.step_guard import StepGuard, StepRecord
from medsora.vae import FrequencyCompensatedVAE, check_video_shape, measure_scaling_factor
from medsora.vae.base import load_weights
from medsora.vae.losses import VaeLoss

SCALING_CLIPS = 64  # enough for three digits of the latents' standard deviation


@dataclass
class VaeStage:
    """Everything that stage 1 needs, built and checked before the first step."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    clips: ClipDataset
    held_out: ClipDataset
    vae: FrequencyCompensatedVAE
    loss: VaeLoss
    optimizer: torch.optim.Optimizer
    names: list[str]
    schedule: Schedule

    @property
    def parts(self) -> StageParts:
        """What a checkpoint holds."""
        return StageParts(
            self.run,
            self.optimizer,
            self.names,
            models={"vae": ModelPart(self.vae.save_pretrained, self._load_vae)},
            values={},
            model_bytes=sum(parameter.nbytes for parameter in self.vae.parameters()),
        )

    def _load_vae(self, folder: Path) -> None:
        load_weights(self.vae, folder / "diffusion_pytorch_model.safetensors")

    def save(self, step: int) -> None:
        """Write the checkpoint of `step` finished steps (main process; the others wait)."""
        self.parts.save(step, self.config.train_vae, self.config)

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; return the number of finished steps."""
        checkpoint = self.run.newest_checkpoint()
        if checkpoint is None:
            return 0
        self.parts.take_up(checkpoint)
        self.run.announce(checkpoint, self.schedule.total_steps)
        return checkpoint.step


def train_vae(config: Config, *, time_limit_minutes: float | None = None) -> Path:
    """Run stage 1 to its end, going on from the last checkpoint if there is one; return the VAE's folder.

    Raises `BadInput` for input that cannot be used, `NonFiniteLoss` and `Interrupted` after saving.
    """
    stop = StopRequest(time_limit_minutes)
    with losses_said(), building(), stop.preparing():
        stage = build_vae_stage(config)
        model, optimizer = stage.accelerator.prepare(stage.vae, stage.optimizer)
        start = stage.resume()
    settings, accelerator, run, schedule = config.train_vae, stage.accelerator, stage.run, stage.schedule
    order = StepBatches(
        schedule,
        config.run.seed,
        start_step=start,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=settings.accumulation,
    )
    batches = TimedBatches(NumberedClips(stage.clips), order, config.data.workers)
    progress = Progress("stage 1", schedule.total_steps, start, show=accelerator.is_local_main_process)
    report = RunReport(run, f"{config.run.name}: the VAE", schedule.total_steps)
    guard = StepGuard(accelerator, stage.optimizer)
    stop.expect_checkpoint(stage.parts.size_bytes)
    stop.expect_answers_late(guard.lag)
    with losses_said(), stop, batches, progress, report:
        _look(stage, start, resumed=True)
        if any(any_process(accelerator, stop.wanted())):
            raise _interrupted(stage, start, stop)
        for number in range(start, schedule.total_steps):
            stop.begin_step()
            step = schedule.step(number)
            set_learning_rate(optimizer, step.lr)
            torch.manual_seed(derive_seed(config.run.seed, "step", number, accelerator.process_index))
            model.train()
            parts: dict[str, torch.Tensor] = {}
            record = StepRecord(number)
            for micro in range(settings.accumulation):
                batch = batches.next()
                # A worker's batch lies otherwise in memory than the main process's: other last digits.
                video = random_crops(batch["video"], settings.crop, config.run.seed, batch["sample"])
                video = sent(video, accelerator.device).contiguous()
                draws = [generator_for(config.run.seed, "posterior", int(n)) for n in batch["sample"]]
                last = micro == settings.accumulation - 1
                with accelerator.autocast(), gradients_synchronised(accelerator, model, last):
                    out = model(video, generator=draws, coarse=settings.coarse > 0)
                    loss = stage.loss(out.reconstruction, video, out.mean, out.logvar, out.coarse)
                    accelerator.backward(loss.total / settings.accumulation)
                record.add(loss.total, batch)
                for name, value in loss.parts().items():
                    parts[name] = parts.get(name, 0.0) + value.detach() / settings.accumulation

            norm = clipped_norm(accelerator, stage.vae, settings.clip_norm)
            done = number + 1
            ends = done == schedule.total_steps
            logs = done % settings.log_every == 0 or ends
            saves = done % settings.save_every == 0 or ends
            bad, asked = guard.look(record, norm, asked=stop.wanted(), at_once=logs or saves)
            if bad is not None:
                stage.save(bad.number)
                accelerator.end_training()
                raise bad.error(run.checkpoints)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            progress.count(step.batch, batches.waited())
            if logs:
                figures = {f"loss/{name}": float(value) for name, value in parts.items()}
                state = {"gradient_norm": float(norm), "lr": step.lr, "epoch": step.epoch}
                speed = progress.speed()
                run.log(done, {**figures, **state, **speed})
                progress.show(figures, speed)
                report.update()
                progress.restart_clock()
            if saves or asked:
                with stop.saving():
                    stage.save(done)
            if asked and not ends:
                raise _interrupted(stage, done, stop)
            with progress.not_training():
                _look(stage, done)  # an interrupted run makes up for it when it is resumed

    return _finish(stage)


def build_vae_stage(config: Config) -> VaeStage:
    """Build model, data, loss and optimiser; raises `ValueError` or `OSError` for whatever cannot be used."""
    settings = config.train_vae
    accelerator = make_accelerator(config, settings.precision, config.vae_dir)
    vae = FrequencyCompensatedVAE.from_base(
        shipped_file(config.vae.base),
        compensation=config.vae.compensation,
        compensation_kind=config.vae.compensation_kind,
        weights=shipped_file(config.vae.weights),
    )
    check_video_shape(config.data.frames, *config.data.height_width)
    check_crop(config)
    loss = VaeLoss(
        l1=settings.l1,
        lpips=settings.lpips,
        ffl=settings.ffl,
        kl=settings.kl,
        coarse=settings.coarse,
        lpips_net=settings.lpips_net,
        lpips_trunk=settings.lpips_trunk,
    ).to(accelerator.device)
    clips, held_out = open_clips(config, accelerator, extra_frame=False, images=0)
    schedule = Schedule.of(settings, len(clips))
    schedule.check_processes(accelerator.num_processes, settings.accumulation)
    parameters = vae.trainable_parameters(settings.train)
    names = [name for name, parameter in vae.named_parameters() if parameter.requires_grad]
    if settings.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=tuple(settings.betas), fused=True)
    run = RunFolder(config.vae_dir, config, "train_vae", accelerator)
    check_same_run(run, config, clips)
    start_trackers(accelerator, run, config)
    if settings.lpips == 0:
        run.say("LPIPS is left out of the loss (train_vae.lpips is 0).")
    return VaeStage(config, accelerator, run, clips, held_out, vae, loss, optimizer, names, schedule)


def _interrupted(stage: VaeStage, step: int, stop: StopRequest) -> Interrupted:
    """Save what is not saved yet and end the training; return what to raise."""
    stage.save(step)
    stage.accelerator.end_training()
    return Interrupted(f"{stop.why()}; saved after step {step}, the same command goes on from there.")


def _look(stage: VaeStage, step: int, *, resumed: bool = False) -> None:
    """Evaluate if that is due after `step`; with `resumed` only if a stop after its checkpoint prevented it.

    Held-out clips are reconstructed with and without the compensation, figures logged, the sheet drawn.
    """
    due = step % stage.config.train_vae.eval_every == 0 or step == stage.schedule.total_steps
    if stage.run.main and due and not (resumed and stage.run.has_logged(step, "held_out/")):
        clips = [
            stage.held_out.fixed_clip(i)
            for i in range(min(stage.config.train_vae.eval_clips, len(stage.held_out)))
        ]
        figures, sheet = evaluate_reconstruction(stage.vae, clips)
        keep_sheet(stage.run, stage.run.samples / f"step-{step:07d}.png", sheet, step)
        stage.run.log(step, figures)
        told = ", ".join(f"{name.removeprefix('held_out/')} {value:.4g}" for name, value in figures.items())
        stage.run.say(f"step {step}, held out: {told}")
    stage.accelerator.wait_for_everyone()


def _scaling_clips(stage: VaeStage) -> Iterator[torch.Tensor]:
    for index in range(min(len(stage.clips), SCALING_CLIPS)):
        yield stage.clips.fixed_clip(index)["video"][None].to(stage.accelerator.device)


def _finish(stage: VaeStage) -> Path:
    """Write the trained VAE where stage 2 looks for it, with the scaling factor of its own latents."""
    folder = stage.run.path / "final"
    if stage.run.main:
        if stage.config.train_vae.train == "all":
            factor = measure_scaling_factor(stage.vae, _scaling_clips(stage))
            factor *= stage.config.train_vae.latent_std
            stage.vae.set_scaling_factor(factor)
            stage.run.say(f"the scaling factor of these latents is {factor:.4f}.")
        with written_folder(folder) as beside:
            stage.vae.save_pretrained(beside)
        stage.run.say(f"stage 1 is done: the VAE is in {folder}.")
    stage.accelerator.wait_for_everyone()
    stage.accelerator.end_training()
    return folder
