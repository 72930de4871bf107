"""`medsora convert endora FILE.pt OUT` and `... endogen ...`: a published checkpoint as a model folder.

OUT/model_index.json  README.md                     as `export` writes them, and for
    endora: denoiser/  vae/  scheduler/             endogen: transformer/  tokenizer/
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from medsora.errors import BadInput, check_limits
from medsora.runtime.files import written_folder
from medsora.saved.card import CARD_NAME
from medsora.saved.pipeline import SavedPipeline

FPS, STEPS = 8, 250  # defaults of the published samplers
FRAMES, SIZE_PX = 16, 128  # EndoGen's defaults: its weights do not store the shape of a clip
OPTIONS = {"endora": ("heads", "layout"), "endogen": ("frames", "size")}  # options that one system has
LIMITS = {"heads": (1, 1024), "frames": (1, 4096), "size": (1, 4096)}


def run(options: argparse.Namespace, console: Console) -> None:
    """Make the folder; raises `BadInput` with one sentence."""
    pipeline = convert(options)
    console.print(
        f"{pipeline.card().parameters:,} parameters, {pipeline.config.frames} frames; model folder, with its "
        f"card: {options.out}",
        highlight=False,
        soft_wrap=True,
    )


def convert(options: argparse.Namespace) -> SavedPipeline:
    """Write a published checkpoint, with the VAE or tokenizer `options.vae`, to the new folder `options.out`.

    Labels are called by their numbers. Raises `BadInput` if `out` is there already, a part cannot be read, or
    an option is the other system's or outside its range.
    """
    out = options.out
    if out.exists():
        raise BadInput(f"{out} is there already; take another folder, or remove it.")
    for system, names in OPTIONS.items():
        given = [name for name in names if getattr(options, name) is not None]
        if given and system != options.system:
            raise BadInput(f"--{given[0]} belongs to files of {system}; leave it out.")
    check_limits(options, LIMITS)
    pipeline = SYSTEMS[options.system](options)
    name = options.file.name
    card = pipeline.card(data=f"Converted from {name}, which does not name its training data.")
    with written_folder(out) as folder:
        pipeline.save_pretrained(folder)
        (folder / CARD_NAME).write_text(card.markdown(), encoding="utf-8")
    return pipeline


def _endora(options: argparse.Namespace) -> SavedPipeline:
    """Return a pipeline that samples as published: 250 DDPM steps with learned variance."""
    from medsora.baselines.endora.checkpoint import read_published
    from medsora.sampler import ddpm_scheduler
    from medsora.sampling.pipeline import MedSoraPipeline
    from medsora.saved.find import checked_base
    from medsora.vae import PerFrameVAE

    published = read_published(options.file, heads=options.heads, layout=options.layout)
    try:
        named = options.vae or "stabilityai/sd-vae-ft-ema"
        decoder = PerFrameVAE.from_base(checked_base(named, None, PerFrameVAE.base_class))
    except (ValueError, OSError) as error:
        raise BadInput(f"{str(error).rstrip('.')}; name the VAE by --vae.") from error
    side = published.latent_side * decoder.pixels_per_latent
    return MedSoraPipeline(
        published.model,
        decoder,
        ddpm_scheduler(STEPS),
        frames=published.frames,
        size=(side, side),
        fps=FPS,
        labels=_numbers(published.model.config.classes),
    )


def _endogen(options: argparse.Namespace) -> SavedPipeline:
    from medsora.baselines.endogen.checkpoint import read_published
    from medsora.sampling.tokens import EndoGenPipeline, code_grid
    from medsora.saved.find import load_tokenizer

    if options.vae is None:
        raise BadInput("name the tokenizer that the file was trained with by --vae.")
    tokenizer = load_tokenizer(options.vae, "name the tokenizer by --vae")
    frames, size = options.frames or FRAMES, (options.size or SIZE_PX,) * 2
    rows, cols = code_grid(frames, size, tokenizer.downsampling)
    model = read_published(options.file, rows=rows, cols=cols)
    labels = _numbers(model.config.classes)
    return EndoGenPipeline(model, tokenizer, frames=frames, size=size, fps=FPS, labels=labels)


# How each system's file becomes a pipeline.
SYSTEMS: dict[str, Callable[[argparse.Namespace], SavedPipeline]] = {"endora": _endora, "endogen": _endogen}


def _numbers(classes: int) -> list[str]:
    return [str(number) for number in range(classes)]
