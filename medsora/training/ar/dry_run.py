"""`medsora train-ar --dry-run`: everything that a run needs, built, counted and checked; nothing trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from medsora.baselines.endogen import EndoGen
from medsora.config.schema import STAGE_AR, Config
from medsora.saved.checkpoint import checkpoint_folders
from medsora.saved.find import trained_tokenizer
from medsora.saved.optimizer import moments
from medsora.training.ar.build import build_transformer, start_from
from medsora.training.ar.loss import NextCodeLoss
from medsora.training.cache.codes import code_cache_bytes
from medsora.training.dry_run.memory import MemoryEstimate, autocast, count_flops, peak_bytes, size_bytes
from medsora.training.dry_run.report import (
    Findings,
    check_disk,
    count_clips,
    inspect_run,
    report_hours,
    samples_left,
)
from medsora.training.open_clips import clip_spec


def dry_run_ar(config: Config, processes: int = 1) -> None:
    """Check a run of EndoGen, for so many processes; raises `BadInput` if anything is missing."""
    findings, settings = Findings(), config.train_ar
    tokenizer = model = None
    with findings.part("the tokenizer"):
        tokenizer = trained_tokenizer(config)
        findings.line("tokenizer", f"{tokenizer.num_codes:,} codes of {tokenizer.downsampling} pixels a side")
    clips, labels = count_clips(findings, config, clip_spec(config), config.ar_dir)
    if tokenizer is not None:
        with findings.part("the transformer"):
            model = build_transformer(config, tokenizer, len(labels))
            if not checkpoint_folders(config.ar_dir / "checkpoints"):
                start_from(model, config.endogen.weights, labels)
            of = f"{model.num_parameters():,} trained parameters, {model.length:,} codes per clip"
            findings.line("transformer", f"{config.endogen.preset}, {of}")
    schedule = inspect_run(findings, config, STAGE_AR, clips, processes)
    if findings.missing:
        return findings.conclude()
    batch = settings.batch // (processes * settings.accumulation)
    trained = size_bytes(model)
    step = peak_bytes([model], training_step(config, model, batch))
    estimate = MemoryEstimate(
        weights=trained,
        optimiser=moments(settings.optimizer) * trained,
        frozen=size_bytes(tokenizer),
        step=step,
        evaluating=0,
        clips=0,
    )
    findings.memory(estimate, batch)
    flops = float(samples_left(findings, schedule)) * count_flops([model], training_step(config, model, 1))
    report_hours(findings, settings, flops / processes)
    with findings.part("the disk"):
        caches = {config.cache.dir: code_cache_bytes(config, clips, model.length)}
        checkpoint = trained + estimate.optimiser
        check_disk(findings, config.ar_dir, settings, checkpoint, caches)
    findings.conclude()


def training_step(config: Config, model: EndoGen, batch: int) -> Callable[[], Tensor]:
    """Return what computes the loss of `batch` clips."""
    loss = NextCodeLoss(partial(autocast, config.train_ar.precision))
    model.train()

    def train() -> Tensor:
        codes = torch.zeros(batch, model.length, dtype=torch.long)
        return loss(model, codes, torch.zeros(batch, dtype=torch.long))

    return train
