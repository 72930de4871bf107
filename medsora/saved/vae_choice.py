"""Which VAE stage 2 works on: the one that `vae.path` names, or stage 1's of the same run."""

from __future__ import annotations

from pathlib import Path

from medsora.config.schema import Config
from medsora.errors import BadInput
from vae import FrequencyCompensatedVAE


def trained_vae(config: Config) -> FrequencyCompensatedVAE:
    """Return the frozen VAE of stage 2, in evaluation mode.

    `vae.path` is a VAE folder, or a stage 1 run folder that holds one as `final`. Raises `BadInput` where
    there is none.
    """
    named = Path(config.vae.path) if config.vae.path is not None else config.vae_dir
    folder = named / "final" if (named / "final").is_dir() else named
    if not (folder / "config.json").is_file():
        how = (
            ""
            if config.vae.path is not None
            else "; run train_vae.py with the same config first, or set vae.path"
        )
        raise BadInput(f"there is no trained VAE in {folder}{how}.")
    return FrequencyCompensatedVAE.from_pretrained(folder).eval().requires_grad_(False)
