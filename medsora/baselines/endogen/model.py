"""EndoGen's transformer (Liu et al., 2025), which is LlamaGen's (Sun et al., 2024) on a grid of frames.

Shapes: codes (B, n) of the grid's picture, row by row; embeddings (B, 1 + n, d), the class token first;
N = rows·cols codes make a clip.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it beside the class that it loads
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from medsora.baselines.endogen.masking import DEFAULT_RATE, semantic_mask
from medsora.config.presets import ENDOGEN_PRESETS
from medsora.denoiser.base import PresetModel
from medsora.denoiser.linear import Linear
from medsora.errors import BadInput
from medsora.tables import kept_table

ROTARY_BASE = 10_000


class EndoGen(PresetModel):
    """A decoder-only transformer over codes: pre-norm, RMSNorm, SwiGLU, rotary positions of the grid.

    Args:
        num_codes: size of the tokenizer's codebook.
        rows, cols: size in codes of the grid's picture; 32x32 for 16 frames of 128x128 by VQ-16.
        width: d.
        depth: number of blocks.
        heads: number of heads of every attention layer.
        hidden: width inside the feed-forward layers.
        classes: how many labels a clip may have; the last row of the table stands for none.
        dropout: probability, in every residual branch, in training.
        mask: largest rate of the semantic-aware token masking, in training; 0 disables it.
        mask_group: tokens of one of its groups: the codes of one line of one frame.
        mask_whole_groups: as in `semantic_mask`.

    Raises:
        BadInput: if the sizes do not divide.
    """

    presets: ClassVar = ENDOGEN_PRESETS
    _no_split_modules: ClassVar = ["Block"]

    @register_to_config
    def __init__(
        self,
        num_codes: int = 16_384,
        rows: int = 32,
        cols: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 2048,
        classes: int = 0,
        dropout: float = 0.1,
        mask: float = DEFAULT_RATE,
        mask_group: int = 8,
        mask_whole_groups: bool = False,
    ) -> None:
        super().__init__()
        if width % (4 * heads):
            raise BadInput(f"width {width} must be divisible by 4 times the heads ({heads}).")
        self.labels = nn.Embedding(classes + 1, width)  # the last row: no label
        self.codes = nn.Embedding(num_codes, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = Linear(width, num_codes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.output.weight)

    @property
    def length(self) -> int:
        """N, the codes of a clip."""
        return self.config.rows * self.config.cols

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the logits (B, 1 + n, K) of the codes that follow the class token and each of `codes`.

        Args:
            codes: (B, n), n < N: a clip's first codes; in training all but the last.
            labels: (B,); default: no label.

        Raises:
            BadInput: for more codes than N - 1.
        """
        if codes.ndim != 2 or codes.shape[1] >= self.length:
            raise BadInput(f"codes must be (B, n) with n below {self.length}, not {tuple(codes.shape)}.")
        x = torch.cat((self._class_token(labels, len(codes), codes.device), self.codes(codes)), dim=1)
        if self.training:
            of = self.config
            x = semantic_mask(x, of.mask_group, of.mask, whole_groups=of.mask_whole_groups)
        turns = self._turns(x)[: x.shape[1]]
        for block in self.blocks:
            x = block(x, turns)
        return self.output(self.norm(x))

    def start(self, batch: int) -> KeyValueCache:
        """Return an empty key-value cache for sampling `batch` clips."""
        block = self.blocks[0]
        sizes = (len(self.blocks), 2, batch, block.heads, self.length, self.config.width // block.heads)
        return KeyValueCache(torch.empty(sizes, device=self.device, dtype=self.dtype))

    @torch.no_grad()
    def step(self, cache: KeyValueCache, last: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """Return the logits (B, K) of the next code, equal to the last ones of `forward`.

        Args:
            cache: from `start`, filled with the codes before; grows by one position.
            last: the code (B,) before; None at the first step, which reads the class token of `labels`.
        """
        batch = cache.buffer.shape[2]
        x = self._class_token(labels, batch, self.device) if last is None else self.codes(last[:, None])
        turns = self._turns(x)[cache.length : cache.length + 1]
        for block, memory in zip(self.blocks, cache.buffer, strict=True):
            x = block(x, turns, memory, cache.length)
        cache.length += 1
        return self.output(self.norm(x))[:, 0]

    def _class_token(self, labels: Tensor | None, batch: int, device: torch.device) -> Tensor:
        if labels is None:
            labels = torch.full((batch,), self.config.classes, device=device)
        return self.labels(labels)[:, None]

    def _turns(self, like: Tensor) -> Tensor:
        head = self.config.width // self.blocks[0].heads
        dtype = torch.promote_types(like.dtype, torch.float32)
        return rotations(self.config.rows, self.config.cols, head, like.device, dtype)


class KeyValueCache:
    """Keys and values (depth, 2, B, heads, N, p) of the positions so far, in one preallocated buffer."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.length = buffer, 0


class Block(nn.Module):
    """Causal attention and a SwiGLU feed-forward layer, each after an RMSNorm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.qkv = Linear(width, 3 * width, bias=False)
        self.projection = Linear(width, width, bias=False)
        self.gate, self.widen = (Linear(width, hidden, bias=False) for _ in range(2))
        self.narrow = Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turns: Tensor, memory: Tensor | None = None, start: int = 0) -> Tensor:
        """(B, n, d) -> (B, n, d), with the rotations (n, p/2, 2) of its positions.

        With `memory` (2, B, heads, N, p), which holds the keys and values of the `start` positions before,
        n is 1, and those of this position are added.
        """
        x = x + self.dropout(self._attend(self.attention_norm(x), turns, memory, start))
        y = self.feed_forward_norm(x)
        return x + self.dropout(self.narrow(F.silu(self.gate(y)) * self.widen(y)))

    def _attend(self, x: Tensor, turns: Tensor, memory: Tensor | None, start: int) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rotate(qkv[0], turns), rotate(qkv[1], turns), qkv[2]
        if memory is not None:
            memory[0, :, :, start : start + 1], memory[1, :, :, start : start + 1] = k, v
            k, v = memory[:, :, :, : start + 1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=memory is None)
        return self.projection(y.transpose(1, 2).flatten(2))


@kept_table
def rotations(rows: int, cols: int, head: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosines and sines (1 + rows·cols, head/2, 2) of the class token and of every code's place.

    The first half of a head's pairs turns by the row, the second by the column: by index·10000^(-4i/head).
    The class token's are all zero, so its queries and keys are zero vectors, as in the released code.
    """
    frequencies = ROTARY_BASE ** (-4 * torch.arange(head // 4, dtype=torch.float64) / head)
    row, col = (torch.arange(count, dtype=torch.float64)[:, None] * frequencies for count in (rows, cols))
    angles = torch.cat((row[:, None].expand(-1, cols, -1), col.expand(rows, -1, -1)), dim=-1).flatten(0, 1)
    turns = torch.stack((angles.cos(), angles.sin()), dim=-1)
    return torch.cat((torch.zeros_like(turns[:1]), turns)).to(device, dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (2j, 2j + 1) of heads (B, heads, n, p) by `turns` (n, p/2, 2), in their precision."""
    even, odd = x.to(turns.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns.unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
