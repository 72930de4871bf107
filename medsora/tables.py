"""Tables that depend on sizes alone: built once and kept while they are in use, by LRU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from threading import RLock
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

MAX_TABLES = 128  # per function: a step of the largest model needs 16 of one kind

Built = TypeVar("Built")
_one_at_a_time = RLock()
_collected: ContextVar[list[Any] | None] = ContextVar("collected tables", default=None)


def kept_table(build: Callable[..., Built]) -> Callable[..., Built]:
    """Cache what `build` makes of positional, hashable arguments; the `MAX_TABLES` last used ones stay.

    Cached tensors are real (not fake) and usable in autograd even if first requested under
    `FakeTensorMode(allow_non_fake_inputs=True)` or `torch.inference_mode`. Code that keeps a table's bare
    address, as a CUDA graph does, holds the table too: see `collect_tables`.
    """
    build = torch.inference_mode(False)(build)

    @lru_cache(MAX_TABLES)
    def kept(*sizes: Any) -> Built:
        with _disable_current_modes():
            return build(*sizes)

    @wraps(build)
    def get(*sizes: Any) -> Built:
        if torch.compiler.is_compiling():
            return build(*sizes)
        with _one_at_a_time:
            table = kept(*sizes)
        if (collected := _collected.get()) is not None:
            collected.append(table)
        return table

    get.cache_info = kept.cache_info
    return get


@contextmanager
def collect_tables() -> Iterator[list[Any]]:
    """List every cached table that this thread requests meanwhile; one may appear several times."""
    collected: list[Any] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)
