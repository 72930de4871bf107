"""Everything that EndoGen's training needs, built and checked before its first step."""

from __future__ import annotations

from typing import Any

import torch

from medsora.baselines.endogen import EndoGen
from medsora.baselines.endogen.grid import grid_shape
from medsora.config.schema import STAGE_AR, Config
from medsora.errors import BadInput
from medsora.runtime.digests import weights_digest
from medsora.sampling.tokens import code_grid
from medsora.saved.checkpoint import checkpoint_folders
from medsora.saved.find import ENDOGEN, find_model, trained_tokenizer
from medsora.saved.limits import check_part
from medsora.saved.manifest import refuse_changed_part
from medsora.saved.optimizer import build_optimizer
from medsora.training.accelerator import make_accelerator
from medsora.training.ar.loss import NextCodeLoss
from medsora.training.ar.samples import CodeSamples
from medsora.training.ar.stage import ArStage
from medsora.training.cache.codes import CodeCache, encode_clip
from medsora.training.open_clips import clip_spec, open_clips, open_run


def build_ar_stage(config: Config) -> ArStage:
    """Build everything; raises `ValueError` or `OSError` for invalid input."""
    settings = config.train_ar
    accelerator = make_accelerator(config, STAGE_AR)
    tokenizer = trained_tokenizer(config)
    clips, held_out = open_clips(config, accelerator, clip_spec(config), config.ar_dir)
    labels = clips.labels.names
    model = build_transformer(config, tokenizer, len(labels))
    if not checkpoint_folders(config.ar_dir / "checkpoints"):  # a resumed run does without them
        start_from(model, config.endogen.weights, labels)
    for part in (model, tokenizer):
        part.to(accelerator.device)
    run, schedule = open_run(config, STAGE_AR, accelerator, clips)
    cache = CodeCache(config, clips, tokenizer)
    cache.build(tokenizer, accelerator)
    evaluated = range(min(settings.eval_clips, len(held_out)))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return ArStage(
        config=config,
        accelerator=accelerator,
        run=run,
        samples=CodeSamples(config, clips, cache),
        held_out_codes=torch.stack([encode_clip(tokenizer, held_out, index) for index in evaluated]),
        held_out_labels=torch.tensor([held_out.label(index) for index in evaluated]),
        model=model,
        tokenizer=tokenizer,
        decoder_digest=weights_digest(tokenizer),
        loss=NextCodeLoss(accelerator.autocast),
        optimizer=build_optimizer(
            settings.optimizer,
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=settings.betas,
        ),
        schedule=schedule,
    )


def build_transformer(config: Config, tokenizer: Any, classes: int) -> EndoGen:
    """Return the transformer of the config's preset for a tokenizer and so many labels.

    Raises `BadInput` if the clip is no grid of whole codes.
    """
    data, settings = config.data, config.endogen
    rows, cols = code_grid(data.frames, data.height_width, tokenizer.downsampling)
    return EndoGen.from_preset(
        settings.preset,
        num_codes=tokenizer.num_codes,
        rows=rows,
        cols=cols,
        classes=classes,
        dropout=settings.dropout,
        mask=settings.mask,
        mask_group=cols // grid_shape(data.frames)[1],
        mask_whole_groups=settings.mask_whole_groups,
    )


def start_from(model: EndoGen, trained: str | None, labels: tuple[str, ...] = ()) -> None:
    """Load another model's weights into the transformer, if one is named; match label rows by name.

    Positions are computed, so the grids may differ. Raises `BadInput` if there is no such model.
    """
    if trained is None:
        return
    folder = find_model(trained)
    if folder.kind != ENDOGEN:
        raise BadInput(f"{trained} is no EndoGen model; set endogen.weights to one, or leave it out.")
    check_part(folder.denoiser)
    refuse_changed_part(folder.denoiser)
    model.load_weights(folder.denoiser, (folder.geometry.get("labels", []), labels))
