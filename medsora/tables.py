"""Tables that depend on sizes alone: built once per process, whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Sizes = ParamSpec("Sizes")
Built = TypeVar("Built")


def kept_table(build: Callable[Sizes, Built]) -> Callable[Sizes, Built]:
    """Keep what `build` makes of hashable arguments for the life of the process, under one address.

    Whoever asks first, kept tensors have content and serve under gradients: also where memory is only
    estimated (`FakeTensorMode`) or gradients are off for good (`torch.inference_mode`).
    """
    build = torch.inference_mode(False)(build)

    @cache
    def kept(*sizes: Sizes.args) -> Built:
        with _disable_current_modes():
            return build(*sizes)

    @wraps(build)
    def get(*sizes: Sizes.args) -> Built:
        return build(*sizes) if torch.compiler.is_compiling() else kept(*sizes)

    get.cache_info = kept.cache_info
    return get
