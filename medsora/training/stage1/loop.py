"""Stage 1: fine-tune the frequency-compensated VAE on clips (§3.3, Eq. 16); the step loop is `train_vae`."""

from __future__ import annotations

from pathlib import Path

import torch

from medsora.config.schema import Config
from medsora.errors import bad_input_from_errors
from medsora.runtime.interruption import StopRequest
from medsora.runtime.processes import reporting_lost_processes
from medsora.training.accelerator import clipped_norm, gradients_synchronised
from medsora.training.batches import NumberedClips, TimedBatches, to_device
from medsora.training.loop_end import batch_order, begin, begin_step, check_step, end_step, log_step, watch
from medsora.training.stage1.build import build_vae_stage
from medsora.training.stage1.crops import random_crops


def train_vae(config: Config, *, time_limit_minutes: float | None = None) -> Path:
    """Run stage 1, resuming from the last checkpoint if there is one; return the VAE's folder.

    Raises `BadInput` for input that cannot be used, `NonFiniteLoss` and `Interrupted` after saving.
    """
    stop = StopRequest(time_limit_minutes)
    with reporting_lost_processes(), bad_input_from_errors(), stop.preparing():
        stage = build_vae_stage(config)
        model, optimizer = stage.accelerator.prepare(stage.vae, stage.optimizer)
        start = stage.resume()
    settings, accelerator = config.train_vae, stage.accelerator
    batches = TimedBatches(NumberedClips(stage.clips), batch_order(stage, start), config.data.workers)
    progress, report, guard = watch(stage, start, stop, "stage 1", "the VAE")
    with reporting_lost_processes(), stop, batches, progress, report:
        for number in begin(stage, start, stop):
            done = number + 1
            step, record = begin_step(stage, number, stop, model, optimizer)
            parts: dict[str, torch.Tensor] = {}
            for micro in range(settings.accumulation):
                batch = batches.next()
                # A worker's batch has other strides than the main process's, which changes the last digits.
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
            logs, saves, stops = check_step(stage, guard, record, norm, stop)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            codes = stage.update_codebook(done, norm)

            progress.count(step.batch, batches.waited())
            if logs:
                state = {"gradient_norm": float(norm), "lr": step.lr, "epoch": step.epoch, **codes}
                log_step(stage, done, parts, state, progress, report)
            if end_step(stage, done, stop, progress, saves=saves, stops=stops):
                break

    return stage.finish()
