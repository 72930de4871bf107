"""Arguments of a pipeline's call: seeds, and numbers of the right kind."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import torch

from medsora.errors import BadInput


def choose_seeds(
    count: int | None,
    seeds: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> list[int]:
    """Return one seed per video: those given, or drawn by `generator`. Raises `BadInput`."""
    check_numbers(Integral, "num_videos", num_videos=count)
    if count is not None and count < 1:
        raise BadInput(f"{count} videos cannot be sampled; the minimum is 1.")
    if seeds is None and isinstance(generator, Sequence):
        if len(generator) == 0 or count not in (None, len(generator)):
            raise BadInput(
                f"{len(generator)} generators do not fit {count or 'any'} videos; give one per video."
            )
        return [seed for each in generator for seed in choose_seeds(1, None, each)]
    if seeds is None:
        if not isinstance(generator, torch.Generator | None):
            raise BadInput(f"generator must be a torch.Generator, or a list of one per video: {generator!r}.")
        device = None if generator is None else generator.device
        return torch.randint(2**63 - 1, (count or 1,), generator=generator, device=device).tolist()
    with suppress(TypeError):
        seeds = [operator.index(seeds)]
    if generator is not None:
        raise BadInput("give seeds or a generator that draws them, not both.")
    if isinstance(seeds, str) or _length(seeds) is None:
        raise BadInput(f"seeds must be whole numbers, not {seeds!r}.")
    if len(seeds) == 0 or count not in (None, len(seeds)):
        raise BadInput(f"{len(seeds)} seeds do not fit {count or 'any'} videos; give one per video.")
    for seed in seeds:
        check_numbers(Integral, seed=seed)
    numbers = [int(seed) for seed in seeds]
    if unfit := [seed for seed in numbers if not -(2**63) <= seed < 2**64]:
        raise BadInput(f"a seed must lie between -2^63 and 2^64 - 1, not {unfit[0]}.")
    return numbers


def height_and_width(size: int | Sequence[int]) -> Sequence[int]:
    """Return height and width in pixels; raises `BadInput` unless `size` is one side of a square or both."""
    with suppress(TypeError):
        return [operator.index(size)] * 2
    if isinstance(size, str) or _length(size) != 2:
        raise BadInput(f"size is {size!r}, not one whole number or (height, width).")
    return size


def _length(values: Any) -> int | None:
    """Return how many values a sequence has; None for what is none, such as a tensor of no dimensions."""
    try:
        return len(values)
    except TypeError:
        return None


def check_numbers(kind: type[Integral | Real], *optional: str, **values: Any) -> None:
    """Raise `BadInput`, naming the argument, for a value that is no number of `kind`.

    Those named `optional` may be None.
    """
    needed, number_of = ("whole number", operator.index) if kind is Integral else ("number", math.isfinite)
    for name, value in values.items():
        try:
            (value is None and name in optional) or number_of(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise BadInput(f"{name} must be a {needed}, not {value!r}.") from None
