"""Classifier-free guidance (Ho & Salimans, 2022): how strongly a sample follows its label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    denoise: Callable[..., Tensor], z: Tensor, t: Tensor, labels: Tensor | None, no_label: int, scale: float
) -> Tensor:
    """ε without the label + `scale` · (ε with it - ε without), both from one forward of twice the batch.

    Args:
        denoise: (z (B, n, C, h, w), t (B,) or (B, n), labels) -> ε, such as a `PreparedDenoiser`.
        labels: (B,) or (B, n), or None for what the model does without labels.
        no_label: the number that stands for no label.
        scale: 1 is the conditional model's own output, and one forward of B; 0 ignores the label.
    """
    if labels is None or scale == 1:
        return denoise(z, t, labels)
    twice = torch.cat([labels, torch.full_like(labels, no_label)])
    with_label, without = denoise(torch.cat([z, z]), torch.cat([t, t]), twice).chunk(2)
    return without + scale * (with_label - without)
