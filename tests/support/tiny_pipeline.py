"""A pipeline small enough for a test, with its silent layers woken up, and a run folder that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medsora.denoiser import MedSora
from medsora.runtime.digests import weights_digest
from medsora.runtime.files import write_json
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.checkpoint import save_checkpoint
from medsora.vae import FrequencyCompensatedVAE, PerFrameVAE
from tests.support.awake import awake

DENOISER = {"in_channels": 4, "width": 32, "depth": 2, "heads": 2, "d_state": 8, "headdim": 16}
VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
GEOMETRY = {"frames": 8, "size": [32, 16], "fps": 8, "image_latents": 2}


def tiny_denoiser(seed: int = 0, **overrides: Any) -> MedSora:
    """A denoiser whose zero-initialised weights are drawn instead: one that answers zero passes too much."""
    torch.manual_seed(seed)
    return awake(MedSora(**DENOISER | overrides))


def tiny_vae(**overrides: Any) -> FrequencyCompensatedVAE:
    torch.manual_seed(1)
    return FrequencyCompensatedVAE.from_base(VAE | overrides)


def tiny_pipeline(**overrides: Any) -> MedSoraPipeline:
    pipeline = MedSoraPipeline(tiny_denoiser(**overrides), tiny_vae(), **GEOMETRY)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_conditional(folder: Path, **trained_on: Any) -> Path:
    """A saved pipeline with labels that can begin with one frame or nine."""
    denoiser, names = tiny_denoiser(classes=2), ["bleeding", "polyp"]
    clip = GEOMETRY | {"frames": 17} | trained_on
    pipeline = MedSoraPipeline(denoiser, tiny_vae(), **clip, labels=names, given_frames=[1, 9])
    pipeline.save_pretrained(folder)
    return folder


def write_per_frame(folder: Path) -> Path:
    """A saved pipeline of clips of 5 frames whose VAE encodes each by itself; it can begin with 1 or 2."""
    base = {"block_out_channels": [8] * 4, "norm_num_groups": 4}
    for way in ("down", "up"):
        base[f"{way}_block_types"] = [f"{way.title()}{'En' if way == 'down' else 'De'}coderBlock2D"] * 4
    clip = GEOMETRY | {"frames": 5, "size": [32, 32]}
    pipeline = MedSoraPipeline(tiny_denoiser(), PerFrameVAE.from_base(base), **clip, given_frames=[1, 2])
    pipeline.save_pretrained(folder)
    return folder


def write_run(run: Path, steps: tuple[int, ...] = (5, 10)) -> Path:
    """A run folder as training writes it; at step s the raw weights have seed s, the averaged ones s + 1."""
    tiny_vae().save_pretrained(run / "vae")
    write_json(run / "pipeline.json", GEOMETRY)
    for step in steps:
        write_checkpoint(run, step)
    return run


def write_checkpoint(run: Path, step: int) -> Path:
    def write_models(folder: Path) -> None:
        tiny_denoiser(step).save_pretrained(folder / "denoiser")
        tiny_denoiser(step + 1).save_pretrained(folder / "ema")

    state, optimizer = {"vae": weights_digest(tiny_vae())}, {"w": torch.arange(4.0)}
    return save_checkpoint(run / "checkpoints", step, write_models, optimizer, state, keep=9)


def cut_in_half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
