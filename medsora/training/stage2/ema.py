"""The exponential moving average of the denoiser's weights: diffusers' `EMAModel`, kept beside a live model.

Its decay is warmed up, min(decay, (1 + k) / (10 + k)) at update k, so that a short run's average is not its
initialisation (§4.1: decay 0.9999).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from medsora.denoiser.base import Denoiser
from medsora.denoiser.weights import read_matching_weights
from medsora.saved.checkpoint import save_model


class Ema:
    """Tracks `model`'s parameters; `applied()` puts the average into the model for a while."""

    def __init__(self, model: Denoiser, decay: float) -> None:
        self.model = model
        self.average = EMAModel(model.parameters(), decay=decay, foreach=True)

    @torch.no_grad()
    def update(self, unless: Tensor | None = None) -> None:
        """Move the average towards the model's present weights, unless the number on the device is 1."""
        average, live = self.average, list(self.model.parameters())
        average.optimization_step += 1
        decay = average.get_decay(average.optimization_step)
        difference = torch._foreach_sub(average.shadow_params, live)
        if unless is not None:
            torch._foreach_mul_(difference, 1 - unless)
        torch._foreach_sub_(average.shadow_params, difference, alpha=1 - decay)

    @contextmanager
    def applied(self) -> Iterator[Denoiser]:
        """Yield the model with averaged weights; restore its own afterwards."""
        self.average.store(self.model.parameters())
        self.average.copy_to(self.model.parameters())
        try:
            yield self.model
        finally:
            self.average.restore(self.model.parameters())

    def save(self, folder: Path) -> None:
        """Write the averaged model as a diffusers model folder."""
        with self.applied() as model:
            save_model(model, folder)

    def set_updates(self, updates: int) -> None:
        """Continue the decay after `updates` updates."""
        self.average.optimization_step = updates

    def restore(self, folder: Path) -> None:
        """Take the average from a folder that `save` wrote.

        Raises `BadInput` if it holds another model's weights.
        """
        averaged = read_matching_weights(folder, self.model)
        names = [name for name, _ in self.model.named_parameters()]
        with torch.no_grad():
            for name, shadow in zip(names, self.average.shadow_params, strict=True):
                shadow.copy_(averaged[name])
