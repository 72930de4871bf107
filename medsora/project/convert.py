"""`medsora convert endora FILE.pt OUT`: a published checkpoint as a model folder, with its card.

OUT/model_index.json  denoiser/  vae/  scheduler/  README.md    as `export` writes them
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from medsora.baselines.endora.checkpoint import Published, read_published
from medsora.errors import BadInput
from medsora.runtime.files import written_folder
from medsora.sampler import ddpm_scheduler
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.card import CARD_NAME
from medsora.vae import PerFrameVAE

FPS, STEPS = 8, 250  # of the published samplers
# How each system's file becomes a model: its path, the number of heads, the layout -> `Published`.
SYSTEMS: dict[str, Callable[..., Published]] = {"endora": read_published}


def run(options: argparse.Namespace, console: Console) -> None:
    """Make the folder; raises `BadInput` with one sentence."""
    published = convert(
        options.system, options.file, options.out, vae=options.vae, heads=options.heads, layout=options.layout
    )
    console.print(
        f"{published.model.num_parameters():,} parameters, {published.frames} frames; model folder, with its "
        f"card: {options.out}",
        highlight=False,
        soft_wrap=True,
    )


def convert(
    system: str,
    file: Path,
    out: Path,
    *,
    vae: str | Path,
    heads: int | None = None,
    layout: str | None = None,
) -> Published:
    """Write a published checkpoint, with the per-frame VAE `vae`, to the new folder `out`.

    It samples as it was published: 250 DDPM steps with learned variance. Labels are called by their numbers.
    Raises `BadInput` if `out` is there already, or a part cannot be read.
    """
    if out.exists():
        raise BadInput(f"{out} is there already; take another folder, or remove it.")
    published = SYSTEMS[system](file, heads=heads, layout=layout)
    try:
        decoder = PerFrameVAE.from_base(vae)
    except (ValueError, OSError) as error:
        raise BadInput(f"{str(error).rstrip('.')}; name the VAE by --vae.") from error
    side = published.latent_side * decoder.pixels_per_latent
    labels = [str(number) for number in range(published.model.config.classes)]
    pipeline = MedSoraPipeline(
        published.model,
        decoder,
        ddpm_scheduler(STEPS),
        frames=published.frames,
        size=(side, side),
        fps=FPS,
        labels=labels,
    )
    card = pipeline.card(data=f"Converted from {Path(file).name}, which does not say what it was trained on.")
    with written_folder(out) as folder:
        pipeline.save_pretrained(folder)
        (folder / CARD_NAME).write_text(card.markdown(), encoding="utf-8")
    return published
