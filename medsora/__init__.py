"""MedSora: video diffusion models of endoscopy, trained and sampled on one GPU, many, or none.

The names below load on first use, so that `import medsora` is quick.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

from medsora import checkout
from medsora.version import __version__

if TYPE_CHECKING:
    from medsora.denoiser import PRESETS, MedSora
    from medsora.sampling.pipeline import MedSoraPipeline
    from medsora.sampling.tokens import EndoGenPipeline

checkout.install()

if sys.platform == "darwin":  # read when torch is imported: operators that MPS lacks run on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = ["PRESETS", "EndoGenPipeline", "MedSora", "MedSoraPipeline", "__version__"]

_HOMES = {
    "MedSora": "medsora.denoiser",
    "PRESETS": "medsora.denoiser",
    "MedSoraPipeline": "medsora.sampling.pipeline",
    "EndoGenPipeline": "medsora.sampling.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medsora' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _PipelinesInDiffusers(MetaPathFinder):
    """Adds our pipelines to diffusers' names, where `DiffusionPipeline.from_pretrained` looks classes up."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing; diffusers' own pipelines are imported when the package itself is complete."""
        if name == "diffusers.pipelines":
            _add_to_diffusers()


def _add_to_diffusers() -> None:
    def pipeline(name: str) -> Any:
        if not name.endswith("Pipeline"):
            raise AttributeError(name)
        return __getattr__(name)

    sys.modules["diffusers"].__getattr__ = pipeline  # PEP 562; diffusers' own lookup follows it


if "diffusers" in sys.modules:
    _add_to_diffusers()
else:
    sys.meta_path.insert(0, _PipelinesInDiffusers())
