"""Reconstruction quality of a VAE with and without its compensation: `evaluate.py --vae FOLDER`.

Per clip and on average: PSNR, SSIM, focal frequency loss, flicker, sharpness, and LPIPS if its weights exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from medsora.config.crop import checked_crop, crop_in_words
from medsora.data.reading.pixels import frames_to_video, video_to_frames
from medsora.data.sheet import contact_sheet, save_image
from medsora.errors import bad_input_from_errors
from medsora.evaluation.features.clip_set import DEFAULT_CROP, RESIZE, ClipSet
from medsora.evaluation.metrics.weight_files import at_hand, cached_file
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.settings import ClipSettings
from medsora.runtime.digests import sha256
from medsora.runtime.files import write_json, write_text
from medsora.runtime.markdown import markdown_table
from medsora.runtime.processes import in_process_group, on_main, share_of
from medsora.runtime.versions import library_versions
from medsora.saved.find import VAE_OR_BASE, find_vae, load_vae
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer, focal_frequency_loss
from medsora.vae.compensation import compensation_modules, compensation_off
from medsora.vae.perceptual import PerceptualLoss
from medsora.vae.quality import flicker, psnr, sharpness, ssim

METRICS = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS (VGG) ↓",
    "ffl": "focal frequency loss ↓",
    "flicker": "flicker ↓",
    "sharpness": "sharpness, decades (0: as the clips)",
}
SHOWN = 2  # best and worst clips on the sheet
DIFFERENCE_GAIN = 4
Versions = dict[str, Tensor]


@dataclass
class VaeSettings(ClipSettings):
    """The VAE to measure, by its folder or its run's, or a plain base of diffusers, and the clips."""

    vae: str | Path
    real: str | Path

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(clips=1)
        if self.interval is None and self.rate is None:
            self.interval = 1
        self.crop = checked_crop(DEFAULT_CROP if self.crop is None else self.crop, "the crop")


def evaluate_vae(settings: VaeSettings) -> dict[str, Any] | None:
    """Measure; write `results.json`, `results.md`, `worst-and-best.png` to `settings.out`; return the first.

    None in all but the main process. Raises `BadInput` for a folder or clips that cannot be used.
    """
    with in_process_group() as state:
        return _measure(settings, state)


def _measure(settings: VaeSettings, state: PartialState) -> dict[str, Any] | None:
    clips = on_main(state, lambda: settings.choose(settings.real, settings.clips))
    folder = on_main(state, lambda: find_vae(settings.vae, kinds=(*VAE_OR_BASE, VQTokenizer.__name__)))
    with bad_input_from_errors():
        vae = load_vae(folder).eval().requires_grad_(False).to(state.device)
        vae.check_video_shape(settings.frames, *settings.size)
        perceptual = _find_lpips(settings.weights)
    mine = []
    for number in share_of(state, len(clips)):
        with bad_input_from_errors():
            frames = clips.read(number)
        video = frames_to_video(frames)[None].to(state.device)
        versions = reconstructions(vae, video)
        mine.append((number, {name: _metrics_of(v, video, perceptual) for name, v in versions.items()}))
    rows = [row for _, row in sorted(gather_object(mine), key=lambda pair: pair[0])]
    if not state.is_main_process:
        return None
    results = {
        "vae": str(settings.vae),
        "vae_sha256": sha256(folder / SAFETENSORS_WEIGHTS_NAME),
        "protocol": {
            "frames": settings.frames,
            "size": list(settings.size),
            "seed": settings.seed,
            "crop": crop_in_words(settings.crop),
            "resize": RESIZE.words,
            "lpips": "VGG" if perceptual else "left out: its weights are not here (--weights lpips=FILE)",
            "versions": library_versions(),
        },
        "set": clips.facts(),
        "mean": {
            name: {key: float(np.mean([row[name][key] for row in rows])) for key in rows[0][name]}
            for name in rows[0]
        },
        "clips": [{"name": clips.name(i), **row} for i, row in enumerate(rows)],
    }
    with bad_input_from_errors():
        write_json(settings.out / "results.json", results, ensure_ascii=False)
        write_text(settings.out / "results.md", markdown(results))
        _write_sheet(settings.out / "worst-and-best.png", vae, clips, rows)
    return results


def _find_lpips(weights: Mapping[str, str | Path]) -> PerceptualLoss | None:
    """Return LPIPS if its trunk is named or lies in PyTorch's cache; if not, None: nothing is downloaded."""
    if not at_hand("lpips", weights):
        return None
    return PerceptualLoss("vgg", trunk=weights.get("lpips", cached_file("lpips")))


@torch.no_grad()
def reconstructions(vae: FrequencyCompensatedVAE | VQTokenizer, video: Tensor) -> Versions:
    """Return (1, F, 3, H, W) as the VAE returns it, and as its base alone does if it has a compensation."""
    versions = {"compensated": vae.reconstruct(video)}
    if not any(True for _ in compensation_modules(vae)):
        name = "tokenizer" if isinstance(vae, VQTokenizer) else "base"
        return {name: versions["compensated"]}
    with compensation_off(vae):
        versions["base"] = vae.reconstruct(video)
    return versions


def _metrics_of(version: Tensor, video: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
    """Return the metrics of one reconstruction (1, F, 3, H, W) of `video`, both in [-1, 1]."""
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "psnr": psnr,
        "ssim": ssim,
        "ffl": focal_frequency_loss,
        "flicker": flicker,
        "sharpness": sharpness,
    }
    if perceptual is not None:
        measures["lpips"] = perceptual.to(video.device)
    with torch.no_grad():
        return {name: float(measure(version, video).mean()) for name, measure in measures.items()}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table of means, and the worst and best clips by name."""
    mean, clips = results["mean"], results["clips"]
    measured = [key for key in METRICS if all(key in version for version in mean.values())]
    of_means = [[METRICS[key], *(number_text(mean[name][key]) for name in mean)] for key in measured]
    of_clips = [[clip["name"], *(number_text(clip[name]["psnr"]) for name in mean)] for clip in clips]
    lines = [
        "# VAE",
        "",
        f"{results['vae']} on {len(clips)} clips of {results['set']['folder']}.",
        "",
        *markdown_table(["metric", *mean], of_means),
        "",
        f"LPIPS: {results['protocol']['lpips']}.",
        "",
        *markdown_table(["clip", *(f"{name} PSNR" for name in mean)], of_clips),
        "",
    ]
    return "\n".join(lines)


def spectrum(frames: np.ndarray) -> np.ndarray:
    """Return each grey frame's log power spectrum, 0 Hz in the middle, 80 dB to 255: uint8 (F, H, W, 3)."""
    grey = frames.astype(np.float64).mean(-1)
    power = np.abs(np.fft.fftshift(np.fft.fft2(grey, norm="ortho"), axes=(-2, -1))) ** 2
    decibels = 10 * np.log10(power + 1e-2)
    levels = np.clip((decibels + 20) / 80 * 255, 0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def _write_sheet(
    path: Path, vae: FrequencyCompensatedVAE | VQTokenizer, clips: ClipSet, rows: list[dict]
) -> None:
    best_version = next(iter(rows[0]))
    order = np.argsort([row[best_version]["psnr"] for row in rows])
    shown = dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]])
    strips: list[tuple[str, np.ndarray]] = []
    original = clips.reference
    for number in map(int, shown):
        real = clips.read(number)
        strips += [(f"{clips.name(number)}: {original}", real), ("its spectra", spectrum(real))]
        versions = reconstructions(vae, frames_to_video(real)[None].to(next(vae.parameters()).device))
        for name, version in versions.items():
            returned = video_to_frames(version[0])
            difference = np.abs(returned.astype(int) - real.astype(int)) * DIFFERENCE_GAIN
            decibels = number_text(rows[number][name]["psnr"])
            title = f"|{name} - {original}| x {DIFFERENCE_GAIN}"
            strips += [
                (f"{name}, {decibels} dB", returned),
                (title, difference.clip(0, 255).astype(np.uint8)),
            ]
            strips.append((f"spectra of {name}", spectrum(returned)))
    save_image(path, contact_sheet(strips, columns=4))
