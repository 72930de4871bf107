"""Stage 2: train the denoiser on latents (Eq. 17) with flow alignment (§3.2); the loop is `train_dit`."""

from __future__ import annotations

from pathlib import Path

import torch

from medsora.checkout import scripts_are_here
from medsora.config.schema import Config
from medsora.errors import bad_input_from_errors
from medsora.runtime.interruption import StopRequest
from medsora.runtime.processes import reporting_lost_processes
from medsora.training.accelerator import clipped_norm, float32_products, gradients_synchronised
from medsora.training.batches import TimedBatches
from medsora.training.loop_end import batch_order, begin, begin_step, check_step, end_step, log_step, watch
from medsora.training.stage2.build import build_denoiser_stage


def train_dit(config: Config, *, time_limit_minutes: float | None = None) -> Path:
    """Run stage 2, resuming from the last checkpoint if there is one; return the run folder.

    Raises `BadInput` for input that cannot be used, `NonFiniteLoss` and `Interrupted` after saving.
    """
    stop = StopRequest(time_limit_minutes)
    with reporting_lost_processes(), bad_input_from_errors(), stop.preparing():
        stage = build_denoiser_stage(config)
        model, optimizer = stage.accelerator.prepare(stage.model, stage.optimizer)
        start = stage.resume()
    settings, accelerator, run = config.train_dit, stage.accelerator, stage.run
    order = batch_order(stage, start, stage.clip_labels if config.data.balance else None)
    batches = TimedBatches(stage.samples, order, config.data.workers, collate=stage.samples.collate)
    title = f"the denoiser {config.denoiser.preset}"
    progress, report, guard = watch(stage, start, stop, "stage 2", title)
    with (
        reporting_lost_processes(),
        stop,
        batches,
        progress,
        report,
        float32_products(settings.matmul_precision),
    ):
        for number in begin(stage, start, stop):
            done = number + 1
            step, record = begin_step(stage, number, stop, model, optimizer)
            parts: dict[str, torch.Tensor] = {}
            for micro in range(settings.accumulation):
                batch = batches.next()
                noised = stage.inputs.noised_latents(batch)
                targets = stage.inputs.alignment_targets(batch)
                last = micro == settings.accumulation - 1
                with gradients_synchronised(accelerator, model, last):
                    losses = stage.loss(model, noised, targets)
                    accelerator.backward(losses.total / settings.accumulation)
                if losses.per_block is not None:
                    stage.blocks.add(losses.per_block)
                record.add(losses.total, batch)
                for name, value in {"total": losses.total, **losses.parts}.items():
                    parts[name] = parts.get(name, 0.0) + value.detach() / settings.accumulation

            clip_norm = settings.clip_norm if step.epoch >= settings.clip_after_epoch else None
            norm = clipped_norm(accelerator, stage.model, clip_norm)
            logs, saves, stops = check_step(stage, guard, record, norm, stop)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stage.ema.update(unless=guard.bad if guard.lag else None)

            progress.count(step.batch, batches.waited())
            if logs:
                state = {"gradient_norm": float(norm), "lr": step.lr, "epoch": step.epoch}
                # A run that ends between two lines of the log may be extended later: the sums stay.
                blocks = stage.blocks.metrics(reset=done % settings.log_every == 0)
                log_step(stage, done, parts, state | blocks, progress, report)
            if end_step(stage, done, stop, progress, saves=saves, stops=stops):
                break

    sample = "python sample_ddim.py" if scripts_are_here() else "medsora sample"
    run.notify(f"stage 2 is done: sample with '{sample} --model {run.path} --out {run.path}/videos'.")
    accelerator.end_training()
    return run.path
