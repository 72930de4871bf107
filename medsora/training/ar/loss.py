"""EndoGen's training loss: the cross entropy of every next code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch.nn.functional as F
from torch import Tensor, nn


class NextCodeLoss:
    """Mean over a clip's N codes of -log p(code | label, codes before), in nats.

    The transformer runs inside `autocast()`, the loss outside, in float32.
    """

    def __init__(self, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.autocast = autocast

    def __call__(self, model: nn.Module, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of codes (B, N) with labels (B,)."""
        with self.autocast():
            logits = model(codes[:, :-1], labels)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())
