"""Fill both caches of stage 2 in advance.

`python -m medsora.training.fill_caches --config configs/phantom.yaml`

A run fills them by itself, the latents before its first step and a clip's prior features when a sample first
needs them. Beforehand all processes of `accelerate launch -m ...` share the work, and the disk space needed
is printed first. Entries lie under a key of all that they depend on, so intact ones are kept and all others
are computed.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from medsora.config.load import load_config
from medsora.config.schema import STAGE_2, Config
from medsora.errors import BadInput, bad_input_from_errors
from medsora.runtime.exit import EXIT_STATUSES, exit_with_status
from medsora.runtime.processes import reporting_lost_processes
from medsora.saved.find import trained_vae
from medsora.training.accelerator import make_accelerator
from medsora.training.cache.latents import LatentCache, latent_cache_bytes
from medsora.training.cache.prior import PriorCache, prior_cache_bytes
from medsora.training.open_clips import denoiser_clip_spec, open_clips
from medsora.training.stage2.build import build_denoiser, build_prior, token_grid

MIB = 2**20


def main() -> None:
    """Fill the caches that the config named on the command line switches on."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora.training.fill_caches",
        description="Compute what stage 2 would compute in its steps (latents, prior features) and keep it.",
        epilog=EXIT_STATUSES,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    overrides = "change keys of the config, such as cache.prior=disk"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    options = parser.parse_intermixed_args()
    fill_caches(load_config(options.config, options.overrides))


def fill_caches(config: Config) -> None:
    """Fill them; raises `BadInput` if none is switched on, the disk is too small, or input cannot be used."""
    if config.cache.latents != "disk":
        raise BadInput(
            "the config keeps no cache (cache.latents: off); set cache.latents=disk cache.prior=disk."
        )
    with reporting_lost_processes(), bad_input_from_errors():
        accelerator = make_accelerator(config, STAGE_2)
        vae = trained_vae(config).to(accelerator.device)
        vae.check_video_shape(config.data.frames, *config.data.height_width)
        model = build_denoiser(config, vae.latent_channels)
        aligned = config.alignment.weight > 0 and config.cache.prior == "disk"
        prior = build_prior(config, model.num_features).to(accelerator.device) if aligned else None
        spec = denoiser_clip_spec(config)
        spec = spec if aligned else replace(spec, with_flow=False)
        clips, _ = open_clips(config, accelerator, spec, config.dit_dir)
        latents, priors = LatentCache(config, clips, vae), None
        sizes = {"latents": latent_cache_bytes(config, len(clips), vae)}
        if prior is not None:
            grid, width = token_grid(config, vae, model.config.patch), model.config.width
            priors = PriorCache(config, clips, prior, grid, width)
            sizes["prior features"] = prior_cache_bytes(config, len(clips), prior, grid, width, vae)
        folders = [cache.store.folder for cache in (latents, priors) if cache]
        files = (path for folder in folders for path in folder.rglob("*.safetensors"))
        present = sum(path.stat().st_size for path in files)
        _check_room(Path(config.cache.dir), sizes, present, accelerator)
        latents.build(vae, accelerator)
        if priors is not None:
            priors.build(prior, clips, accelerator, latents)
    if accelerator.is_main_process:
        print(f"filled: {', '.join(map(str, folders))}")


def _check_room(folder: Path, sizes: dict[str, int], present: int, accelerator: Accelerator) -> None:
    """Print the caches' size, of which `present` bytes exist; raise `BadInput` if the disk is too small."""
    whole = sum(sizes.values())
    free = shutil.disk_usage(folder).free
    if accelerator.is_main_process:
        parts = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sizes.items())
        print(f"{folder} will hold {parts}; {free / MIB:.0f} MiB of the disk are free.", flush=True)
    if whole > free + present:
        raise BadInput(
            f"the caches take {whole / MIB:.0f} MiB but {folder} has {free / MIB:.0f} MiB left; make room, "
            "set cache.dir, or leave cache.prior off."
        )


if __name__ == "__main__":
    exit_with_status(main)
