"""The denoiser's blocks through torch.compile: elementwise work is fused, products stay as they are.

All blocks share one compiled form per shape, since what differs, weights and orders, are arguments.
"""

from __future__ import annotations

import importlib
import shutil

from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput


def compile_blocks(model: Denoiser, backend: str = "inductor") -> bool:
    """Compile every block at its next call, in place; once is enough. Return whether one was not yet.

    Names of parameters stay as they are. `backend` is torch.compile's.

    Raises:
        BadInput: on a CPU without a C++ compiler.
    """
    if model.device.type == "cpu" and not _has_compiler():
        raise BadInput(
            "compiling for a CPU needs a C++ compiler and none was found: install g++, or leave compile off."
        )
    plain = [block for block in model.blocks if block._compiled_call_impl is None]
    for block in plain:
        block.compile(dynamic=False, backend=backend)
    return bool(plain)


def _has_compiler() -> bool:
    choices = importlib.import_module("torch._inductor.config").cpp.cxx
    return any(shutil.which(name) for name in choices if name)
