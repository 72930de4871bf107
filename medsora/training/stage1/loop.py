"""Stage 1: fine-tune the frequency-compensated VAE on clips (§3.3, Eq. 16); the step loop is `train_vae`."""

from __future__ import annotations

from pathlib import Path

import torch

from medsora.config.schema import Config
from medsora.errors import bad_input_from_errors
from medsora.runtime.interruption import StopRequest
from medsora.runtime.processes import reporting_lost_processes
from medsora.training.accelerator import clipped_norm, gradients_synchronised, set_learning_rate
from medsora.training.batches import NumberedClips, TimedBatches, to_device
from medsora.training.loop_end import begin, end_step, is_saved, log_step, non_finite
from medsora.training.progress import Progress
from medsora.training.randomness import derive_seed
from medsora.training.run.report import RunReport
from medsora.training.schedule import StepBatches
from medsora.training.stage1.build import build_vae_stage
from medsora.training.stage1.crops import random_crops
from medsora.training.step_guard import StepGuard, StepRecord


def train_vae(config: Config, *, time_limit_minutes: float | None = None) -> Path:
    """Run stage 1 to its end, going on from the last checkpoint if there is one; return the VAE's folder.

    Raises `BadInput` for input that cannot be used, `NonFiniteLoss` and `Interrupted` after saving.
    """
    stop = StopRequest(time_limit_minutes)
    with reporting_lost_processes(), bad_input_from_errors(), stop.preparing():
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
    with reporting_lost_processes(), stop, batches, progress, report:
        for number in begin(stage, start, stop):
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
                video = to_device(video, accelerator.device).contiguous()
                last = micro == settings.accumulation - 1
                with accelerator.autocast(), gradients_synchronised(accelerator, model, last):
                    loss = stage.compute_loss(model, video, batch["sample"])
                    accelerator.backward(loss.total / settings.accumulation)
                record.add(loss.total, batch)
                for name, value in loss._asdict().items():
                    parts[name] = parts.get(name, 0.0) + value.detach() / settings.accumulation

            norm = clipped_norm(accelerator, stage.vae, settings.clip_norm)
            done = number + 1
            ends = done == schedule.total_steps
            logs = done % settings.log_every == 0 or ends
            saves = is_saved(stage, done)
            bad, asked = guard.check(record, norm, asked=stop.wanted(), at_once=logs or saves)
            if bad is not None:
                raise non_finite(stage, bad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            codes = stage.tend_codebook(done, norm)

            progress.count(step.batch, batches.waited())
            if logs:
                state = {"gradient_norm": float(norm), "lr": step.lr, "epoch": step.epoch, **codes}
                log_step(stage, done, parts, state, progress, report)
            if end_step(stage, done, stop, progress, saves=saves, asked=asked):
                break

    return stage.finish()
