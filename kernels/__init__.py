"""How one Mamba-2 scan is computed: the recurrence, its matrix form, and the forms made for GPUs.

The names below load on first use; triton and mamba_ssm are imported only when they are used. Other libraries
probe for a package of this name, so it stays quick to import and carries no version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsora.kernels.dispatch import backends, mamba2_scan

__all__ = ["backends", "mamba2_scan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.dispatch"), name)


if __name__ == "kernels":  # imported by the folder's name, before `medsora`
    from medsora.checkout import import_again

    import_again(__name__)
