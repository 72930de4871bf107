"""MedSora: video diffusion models of endoscopy, trained and sampled on one GPU, many, or none.

The names below load on first use, so that `import medsora` is quick.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsora import checkout
from medsora.version import __version__

if TYPE_CHECKING:
    from medsora.denoiser import PRESETS, MedSora
    from medsora.sampling.pipeline import MedSoraPipeline

checkout.install()

if sys.platform == "darwin":  # read when torch is imported: operators that MPS lacks run on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = ["PRESETS", "MedSora", "MedSoraPipeline", "__version__"]

_HOMES = {
    "MedSora": "medsora.denoiser",
    "PRESETS": "medsora.denoiser",
    "MedSoraPipeline": "medsora.sampling.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medsora' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
