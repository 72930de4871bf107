"""Models whose zero-initialised weights are drawn instead: one that answers zero passes too many tests."""

from __future__ import annotations

import torch

from medsora import MedSora


@torch.no_grad()
def awake(model: MedSora) -> MedSora:
    """Draw whatever is all zeros; return the model."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return model
