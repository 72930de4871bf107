"""Memory layout of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Store 3-D convolutions' weights channels last, which is fastest on a GPU; restore them afterwards.

    Values stay the same, and other users of the model find it unchanged.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    try:
        for convolution in convolutions:
            convolution.to(memory_format=torch.channels_last_3d)
        yield
    finally:
        for convolution in convolutions:
            convolution.to(memory_format=torch.contiguous_format)
