"""Memory layout of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Let 3-D convolutions' weights lie as a GPU is fastest with them, and afterwards as before.

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
