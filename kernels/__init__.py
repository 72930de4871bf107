"""Computation of one Mamba-2 scan: the recurrence, its matrix form, and the forms made for GPUs.

In a checkout other libraries probe this package by the name `kernels`, which Hugging Face uses as well. So it
loads its names on first use, never raises when it is imported, and has no version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsora.kernels.dispatch import backends, mamba2_scan

__all__ = ["backends", "mamba2_scan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'medsora.kernels' has no attribute {name!r}")
    return getattr(import_module("medsora.kernels.dispatch"), name)


if __name__ == "kernels":  # imported by the folder's name, before `medsora`
    from medsora.checkout import import_again

    import_again(__name__)
