"""EndoGen's transformer once more, as slow and plain as its description, on the keys of published files."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def published_shapes(
    width: int, depth: int, hidden: int, codes: int, classes: int
) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a published file's `model`."""
    shapes = {
        "cls_embedding.embedding_table.weight": (classes + 1, width),
        "tok_embeddings.weight": (codes, width),
        "norm.weight": (width,),
        "output.weight": (codes, width),
    }
    for n in range(depth):
        shapes |= {
            f"layers.{n}.attention.wqkv.weight": (3 * width, width),
            f"layers.{n}.attention.wo.weight": (width, width),
            f"layers.{n}.feed_forward.w1.weight": (hidden, width),
            f"layers.{n}.feed_forward.w2.weight": (width, hidden),
            f"layers.{n}.feed_forward.w3.weight": (hidden, width),
            f"layers.{n}.attention_norm.weight": (width,),
            f"layers.{n}.ffn_norm.weight": (width,),
        }
    return shapes


def naive_endogen(w: dict[str, Tensor], codes: list[int], label: int, *, heads: int, cols: int) -> Tensor:
    """Logits (1 + n, K) of one sequence, position by position and head by head."""
    x = torch.stack(
        [w["cls_embedding.embedding_table.weight"][label]] + [w["tok_embeddings.weight"][c] for c in codes]
    )
    depth = len({name.split(".")[1] for name in w if name.startswith("layers.")})
    for n in range(depth):
        layer = {name.removeprefix(f"layers.{n}."): value for name, value in w.items()}
        qkv = norm(x, layer["attention_norm.weight"]) @ layer["attention.wqkv.weight"].T
        q, k, v = qkv.chunk(3, dim=1)
        size, outs = x.shape[1] // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            qs, ks = (torch.stack([turned(row[part], p, cols) for p, row in enumerate(m)]) for m in (q, k))
            rows = []
            for p in range(len(x)):
                scores = torch.stack([qs[p] @ ks[other] / math.sqrt(size) for other in range(p + 1)])
                rows.append(scores.softmax(0) @ v[: p + 1, part])
            outs.append(torch.stack(rows))
        x = x + torch.cat(outs, dim=1) @ layer["attention.wo.weight"].T
        y = norm(x, layer["ffn_norm.weight"])
        gate = y @ layer["feed_forward.w1.weight"].T
        inner = gate * torch.sigmoid(gate) * (y @ layer["feed_forward.w3.weight"].T)
        x = x + inner @ layer["feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-5) * weight


def turned(vector: Tensor, position: int, cols: int) -> Tensor:
    """A head's query or key turned by its place; the class token's, at position 0, is zero."""
    if position == 0:
        return torch.zeros_like(vector)
    row, col = divmod(position - 1, cols)
    pairs, out = len(vector) // 2, vector.clone()
    for j in range(pairs):
        i, index = (j, row) if j < pairs // 2 else (j - pairs // 2, col)
        angle = index * 10000 ** (-2 * i / pairs)
        a, b = vector[2 * j], vector[2 * j + 1]
        out[2 * j] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out
