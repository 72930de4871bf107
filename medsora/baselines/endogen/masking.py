"""Semantic-aware token masking: embeddings that vary little within their group are dropped more often."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_RATE = 0.3


def drop_rates(groups: Tensor, rate: float) -> Tensor:
    """Return the drop rates (B, n, d) in [0, `rate`] of groups of tokens (B, n, k, d).

    rate · (1 - variance over the k tokens / the group's largest over batch and channels): unbiased, per
    channel.
    """
    variance = groups.detach().float().var(dim=2)
    largest = variance.amax(dim=(0, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (rate * (1 - variance / largest)).clamp(0, rate)


def semantic_mask(x: Tensor, group: int, rate: float = DEFAULT_RATE, *, whole_groups: bool = False) -> Tensor:
    """Zero embeddings of a sequence that begins with its class token; nothing is rescaled.

    The class token, and the last tokens that fill no group, are left alone.

    Args:
        x: (B, 1 + n, d).
        group: k, the tokens of a group: one line of one frame.
        rate: the largest drop rate.
        whole_groups: drop every group as a whole, at the mean rate of its channels, as the paper's figure
            shows; else every entry (token, channel) by itself, as the released code does.
    """
    count = (x.shape[1] - 1) // group
    if count == 0 or rate == 0:
        return x
    end = 1 + count * group
    groups = x[:, 1:end].unflatten(1, (count, group))
    rates = drop_rates(groups, rate)[:, :, None]
    if whole_groups:
        rates = rates.mean(dim=-1, keepdim=True)
        draws = torch.rand(rates.shape, device=x.device)
    else:
        draws = torch.rand(groups.shape, device=x.device)
    kept = (groups * (draws >= rates)).flatten(1, 2)
    return torch.cat((x[:, :1], kept, x[:, end:]), dim=1)
