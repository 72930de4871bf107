"""Reconstructions of held-out clips with and without the compensation: metrics and a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medsora.data.reading.pixels import video_to_frames
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer
from medsora.vae.compensation import compensation_modules, compensation_off
from medsora.vae.quality import flicker, mean_colour_psnr, psnr, spectrum_error, ssim

MEASURES = {"psnr": psnr, "ssim": ssim, "flicker": flicker, "spectrum_error": spectrum_error}


@torch.no_grad()
def evaluate_reconstruction(
    vae: FrequencyCompensatedVAE | VQTokenizer, clips: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], list[tuple[str, np.ndarray]]]:
    """Return the `MEASURES` of `clips`' reconstructions, means over clips, and a contact sheet's rows.

    A row is a label and frames, uint8 (F, H, W, 3), of a clip or of one of its reconstructions.
    `base_...` are the same metrics with the compensation switched off, `mean_colour_psnr` what one colour per
    clip would reach. `clips` are items of a `ClipDataset`; the VAE's mode is put back afterwards.
    """
    was_training, device = vae.training, next(vae.parameters()).device
    vae.eval()
    videos = torch.stack([clip["video"] for clip in clips]).to(device)
    versions = {"": vae.reconstruct(videos)}
    if any(True for _ in compensation_modules(vae)):
        with compensation_off(vae):
            versions["base_"] = vae.reconstruct(videos)
    vae.train(was_training)
    metrics = {"held_out/mean_colour_psnr": float(mean_colour_psnr(videos).mean())}
    for prefix, version in versions.items():
        for name, measure in MEASURES.items():
            metrics[f"held_out/{prefix}{name}"] = float(measure(version, videos).mean())
    rows = []
    for number, clip in enumerate(clips):
        rows.append((f"held out: {clip['name']}", video_to_frames(videos[number])))
        rows += [(f"{p}reconstruction", video_to_frames(version[number])) for p, version in versions.items()]
    return metrics, rows
