"""EndoGen's training loop, `train_ar`: predict the next code of every clip's grid."""

from __future__ import annotations

from pathlib import Path

import torch

from medsora.config.schema import Config
from medsora.errors import bad_input_from_errors
from medsora.runtime.interruption import StopRequest
from medsora.runtime.processes import reporting_lost_processes
from medsora.training.accelerator import clipped_norm, float32_products, gradients_synchronised
from medsora.training.ar.build import build_ar_stage
from medsora.training.batches import TimedBatches, to_device
from medsora.training.loop_end import batch_order, begin, begin_step, check_step, end_step, log_step, watch


def train_ar(config: Config, *, time_limit_minutes: float | None = None) -> Path:
    """Train EndoGen, resuming from the last checkpoint if there is one; return the run folder.

    Raises `BadInput` for input that cannot be used, `NonFiniteLoss` and `Interrupted` after saving.
    """
    stop = StopRequest(time_limit_minutes)
    with reporting_lost_processes(), bad_input_from_errors(), stop.preparing():
        stage = build_ar_stage(config)
        model, optimizer = stage.accelerator.prepare(stage.model, stage.optimizer)
        start = stage.resume()
    settings, accelerator, run = config.train_ar, stage.accelerator, stage.run
    order = batch_order(stage, start, stage.clip_labels if config.data.balance else None)
    batches = TimedBatches(stage.samples, order, config.data.workers, collate=stage.samples.collate)
    progress, report, guard = watch(stage, start, stop, "EndoGen", f"EndoGen {config.endogen.preset}")
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
            total = torch.zeros((), device=accelerator.device)
            for micro in range(settings.accumulation):
                batch = batches.next()
                codes, labels = (to_device(batch[name], accelerator.device) for name in ("codes", "label"))
                last = micro == settings.accumulation - 1
                with gradients_synchronised(accelerator, model, last):
                    loss = stage.loss(model, codes, labels)
                    accelerator.backward(loss / settings.accumulation)
                record.add(loss, batch)
                total += loss.detach() / settings.accumulation

            norm = clipped_norm(accelerator, stage.model, settings.clip_norm)
            logs, saves, stops = check_step(stage, guard, record, norm, stop)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            progress.count(step.batch, batches.waited())
            if logs:
                state = {"gradient_norm": float(norm), "lr": step.lr, "epoch": step.epoch}
                log_step(stage, done, {"total": total}, state, progress, report)
            if end_step(stage, done, stop, progress, saves=saves, stops=stops):
                break

    run.notify(
        f"EndoGen is trained: sample with 'medsora sample --model {run.path} --out {run.path}/videos'."
    )
    accelerator.end_training()
    return run.path
