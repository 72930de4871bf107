"""Tables that depend on sizes alone: built once per process, whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from threading import RLock
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Built = TypeVar("Built")
_one_at_a_time = RLock()


def kept_table(build: Callable[..., Built]) -> Callable[..., Built]:
    """Keep what `build` makes of positional, hashable arguments for the life of the process, at one address.

    Whoever asks first, kept tensors have content and serve under gradients: also where memory is only
    estimated (`FakeTensorMode(allow_non_fake_inputs=True)`) or gradients are off for good
    (`torch.inference_mode`).
    """
    build = torch.inference_mode(False)(build)

    @cache
    def kept(*sizes: Any) -> Built:
        with _disable_current_modes():
            return build(*sizes)

    @wraps(build)
    def get(*sizes: Any) -> Built:
        if torch.compiler.is_compiling():
            return build(*sizes)
        with _one_at_a_time:
            return kept(*sizes)

    get.cache_info = kept.cache_info
    return get
