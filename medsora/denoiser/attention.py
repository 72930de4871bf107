"""Local attention over the tokens of a frame (Eq. 6-7), with rotary positions.

It computes what the package `local-attention` computes with window w, `look_backward=1`, `look_forward=1`
and `exact_windowsize=True`: token i sees i-w .. i+w, and q is rotated by w positions more than k, because the
package counts q's position from the end of the three windows that it attends to. Here that is one masked
attention, right at any length, while the package refuses lengths that are no multiple of w or lets its
padding leak in. Long frames go through it in tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import dropout, pad, scaled_dot_product_attention
from torch.utils import flop_counter

from medsora.denoiser.linear import Linear
from medsora.kernels.block_steps import attends_fused
from medsora.tables import kept_table

ROTARY_BASE = 10_000
TILE = 64  # frames of more than two tiles are cut, so that cost grows with l instead of l²

# PyTorch's FlopCounterMode counts attention's GPU kernels only.
for _kernel, _flops in {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_counter.sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_counter.sdpa_backward_flop,
}.items():
    flop_counter.flop_registry.setdefault(_kernel, _flops)


@kept_table
def window_mask(length: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Eq. 6 as a term of the scores, (length, length): 0 where |i - j| <= window, else minus infinity."""
    place = torch.arange(length)
    outside = (place[:, None] - place).abs() > window
    return torch.zeros(length, length).masked_fill(outside, -torch.inf).to(device, dtype)


@kept_table
def _tiled_mask(length: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Eq. 6 for tiles of queries: (tiles, TILE, TILE + 2·window).

    A tile's keys reach from `window` before it to `window` after it. Queries that only fill the last tile may
    see the padding: seeing nothing they would turn into NaN.
    """
    first = torch.arange(0, length, TILE)[:, None, None]
    query = first + torch.arange(TILE)[:, None]
    key = first + torch.arange(-window, TILE + window)
    real = (key >= 0) & (key < length) | (query >= length)
    seen = ((query - key).abs() <= window) & real
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).to(device, dtype)


@kept_table
def rotary_tables(
    length: int, features: int, window: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for q (index 0) and k (index 1), each (2, 1, 1, length, features) in `dtype`.

    The sines of the first half of the features carry a minus, so that rotating x is
    `x·cos + roll(x, features / 2)·sin`.
    """
    place = torch.arange(length, dtype=torch.float64)
    frequency = ROTARY_BASE ** -(torch.arange(0, features, 2, dtype=torch.float64) / features)
    angles = torch.stack((place + window, place))[..., None] * frequency
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return tuple(table[:, None, None].to(device, dtype) for table in tables)


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (3, N, heads, l, p) with the first two turned by `rotary_tables`."""
    qk, v = qkv.split((2, 1))
    q, k = torch.addcmul(qk * cos, qk.roll(qk.shape[-1] // 2, dims=-1), sin).type_as(qkv)
    return q, k, v.squeeze(0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropped: float = 0.0) -> Tensor:
    """Attention of q (..., l, p) to k and v (..., m, p), by products and a softmax where that is faster.

    `mask` is added to the scores, and `dropped` is the probability with which each weight is left out. For
    short sequences on a CPU, PyTorch's own kernel multiplies tiles that are too small: forward and backward
    take up to 4 times as long in float32 and 8 times in bf16.
    """
    if q.device.type != "cpu" or k.shape[-2] > 2 * TILE:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    weights = (scores if mask is None else scores.add_(mask)).softmax(dim=-1)
    return torch.matmul(dropout(weights, dropped), v)


class AttentionTables(NamedTuple):
    """Cached tables of an attention over frames of one length: `rotary_tables`, and Eq. 6 as a mask."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


class LocalAttention(nn.Module):
    """Multi-head attention within +-`window` tokens; q, k, v without bias, no output projection (Table 1)."""

    def __init__(self, width: int, heads: int, window: int, dropout: float, backend: str = "auto") -> None:
        super().__init__()
        self.heads, self.window, self.dropout, self.backend = heads, window, dropout, backend
        self.qkv = Linear(width, 3 * width, bias=False)

    def tables(self, length: int, device: torch.device, dtype: torch.dtype) -> AttentionTables:
        """Return what `forward` needs for frames of `length` tokens and queries of this dtype."""
        features = self.qkv.in_features // self.heads
        mask = window_mask if length <= 2 * TILE else _tiled_mask
        exact = torch.promote_types(dtype, torch.float32)
        rotary = rotary_tables(length, features, self.window, device, exact)
        return AttentionTables(*rotary, mask(length, self.window, device, dtype))

    def forward(self, x: Tensor, tables: AttentionTables | None = None) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d); frames do not see one another.

        `tables`, as `self.tables` gives them, are arguments of compiled code, which cannot read the cache.
        """
        length, width = x.shape[2:]
        qkv = self.qkv(x).view(-1, length, 3, self.heads, width // self.heads)
        cos, sin, mask = tables or self.tables(length, x.device, qkv.dtype)
        if attends_fused(qkv, self.window, self.backend) and not (self.training and self.dropout):
            rotary = (table.view(2, length, -1) for table in (cos, sin))
            return torch.ops.medsora.local_attention(qkv, *rotary, self.window).view_as(x)
        q, k, v = rotated(rearrange(qkv, "N l three heads p -> three N heads l p"), cos, sin)
        y = self._attend(q, k, v, mask.to(q.dtype))
        return y.transpose(1, 2).reshape_as(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Masked attention of (N, heads, l, d / heads)."""
        length, window, dropped = q.shape[2], self.window, self.dropout if self.training else 0.0
        if length <= 2 * TILE:
            return attend(q, k, v, mask, dropped)
        padding = -length % TILE
        q_tiles = pad(q, (0, 0, 0, padding)).flatten(0, 1).unflatten(1, (-1, TILE))
        k_tiles, v_tiles = (
            pad(x, (0, 0, window, window + padding)).flatten(0, 1).unfold(1, TILE + 2 * window, TILE).mT
            for x in (k, v)
        )
        y = attend(q_tiles, k_tiles, v_tiles, mask, dropped)
        return y.flatten(1, 2)[:, :length].unflatten(0, q.shape[:2])
