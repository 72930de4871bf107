"""A loss or gradient that is NaN or infinite: the run stops before it reaches the weights, and says where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from medsora.errors import NonFiniteLoss


class StepRecord:
    """The clips and the loss of each micro-batch of one optimiser step, for the sentence of a stop."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.losses: list[torch.Tensor] = []
        self.clips: list[list[str]] = []

    def add(self, loss: torch.Tensor, batch: dict[str, Any]) -> None:
        """Note a micro-batch: its loss, its clips' names and, where there are any, their timesteps."""
        names = batch["name"]
        if "t" in batch:
            names = [f"{name} (timestep {t})" for name, t in zip(names, batch["t"].tolist(), strict=True)]
        self.losses.append(loss.detach())
        self.clips.append(names)

    def is_finite(self, gradient_norm: torch.Tensor, accelerator: Accelerator) -> bool:
        """Return whether every loss is a finite number and, but for fp16, the gradients' norm is.

        fp16's loss scaler tries out which scale makes gradients overflow, and leaves out those steps itself.
        """
        norms = [] if accelerator.scaler else [gradient_norm.float()]
        return bool(torch.isfinite(torch.stack([loss.float() for loss in self.losses] + norms)).all())

    def error(self, gradient_norm: torch.Tensor, accelerator: Accelerator, saved: Path) -> NonFiniteLoss:
        """Return what to raise after saving; all processes call it. If all losses are finite it names all."""
        found = [
            (float(loss), name) for loss, names in zip(self.losses, self.clips, strict=True) for name in names
        ]
        found = gather_object(found)
        bad = [(loss, name) for loss, name in found if not math.isfinite(loss)]
        what = f"the loss became {bad[0][0]}" if bad else f"the gradients' norm became {float(gradient_norm)}"
        names = ", ".join(name for _, name in bad or found)
        return NonFiniteLoss(
            f"{what} at step {self.number} on {names}; the state before that step is saved in {saved}."
        )
