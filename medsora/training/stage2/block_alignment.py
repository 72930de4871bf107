"""Alignment of every block of the denoiser (Eq. 14): means over the samples since the log's last line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medsora.errors import BadInput


class BlockAlignment:
    """Sums r = 1 - correlation per block where it is computed; nothing leaves the device before `metrics`."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._samples = 0

    def add(self, per_block: Tensor) -> None:
        """Add r (L, B') of the B' samples that had targets; B' may be 0."""
        sums = per_block.float().sum(dim=1)
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        self._samples += per_block.shape[1]

    def state(self) -> dict[str, Any] | None:
        """Return the sums as JSON values: a checkpoint may lie between two lines of the log."""
        return {"sums": self._sums.tolist(), "samples": self._samples} if self._samples else None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Restore what `state` returned; raises `BadInput` for anything else."""
        self._sums, self._samples = None, 0
        if state:
            try:
                self._sums = torch.tensor(state["sums"], dtype=torch.float32)
                self._samples = int(state["samples"])
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(
                    f"the checkpoint's sums of the alignment per block are damaged: {error}."
                ) from error

    def metrics(self, *, reset: bool = True) -> dict[str, float]:
        """Return the mean r of each block since they were last `reset`; nothing if no sample had targets."""
        if not self._samples:
            return {}
        means = (self._sums / self._samples).tolist()
        if reset:
            self._sums, self._samples = None, 0
        return {f"alignment/block_{number:02d}": mean for number, mean in enumerate(means)}
