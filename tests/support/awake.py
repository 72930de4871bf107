"""Models whose zero-initialised weights are drawn instead: one that answers zero passes too many tests."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def awake(model: Model, std: float = 0.1, generator: torch.Generator | None = None) -> Model:
    """Draw whatever is all zeros; return the model."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=std, generator=generator)
    return model
