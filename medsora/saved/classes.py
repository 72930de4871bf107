"""Classes of a model's parts by the name that a saved part's config.json carries; each loads on first use."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput
from medsora.saved.limits import shown

DENOISERS = {"MedSora": "medsora.denoiser", "Endora": "medsora.baselines.endora"}
VAES = {"FrequencyCompensatedVAE": "medsora.vae", "PerFrameVAE": "medsora.vae"}
TRANSFORMERS = {"EndoGen": "medsora.baselines.endogen"}
TOKENIZERS = {"VQTokenizer": "medsora.vae"}


def denoiser_class(name: str) -> type[Denoiser]:
    """Return the denoiser's class `name`, a key of `DENOISERS`."""
    return getattr(import_module(DENOISERS[name]), name)


def class_of_part(homes: dict[str, str], config: dict[str, Any], source: Path) -> type:
    """Return the class, one of `homes`, of the part in the folder `source`, whose config.json is `config`.

    Raises `BadInput` for a class that is not among them.
    """
    name = config.get("_class_name", next(iter(homes)))
    if not isinstance(name, str) or name not in homes:
        known = " or ".join(homes)
        raise BadInput(f"{source} holds {shown(name)}, not a {known}; save or copy the model again.")
    return getattr(import_module(homes[name]), name)
