"""Endora's denoiser once more, as slow and plain as its description, on the keys of published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def published_name(name: str) -> str:
    """Return what published checkpoints call a parameter of `Endora`."""
    for ours, theirs in {
        "patches.projection": "x_embedder.proj",
        "time.mlp": "t_embedder.mlp",
        ".modulation": ".adaLN_modulation.1",
        "final.": "final_layer.",
        ".qkv": ".attn.qkv",
        ".projection": ".attn.proj",
        ".widen": ".mlp.fc1",
        ".narrow": ".mlp.fc2",
        "labels.weight": "y_embedder.embedding_table.weight",
        "adapter.weight": "cov.weight",
    }.items():
        name = name.replace(ours, theirs)
    return name


def positions(indices: Tensor, features: int) -> Tensor:
    """Sines, then cosines, of `indices` (N,) at the frequencies 10000^(-k / (features / 2))."""
    k = torch.arange(features // 2, dtype=torch.float64)
    angles = indices.double()[:, None] * 10_000 ** (-k / (features // 2))
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def frame_positions(rows: int, cols: int, width: int) -> Tensor:
    """(rows·cols, width), row by row: the column in the first half, the row in the second."""
    row, col = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
    return torch.cat((positions(col, width // 2), positions(row, width // 2)), dim=1)


def naive_endora(
    weights: dict[str, Tensor],
    z: Tensor,
    t: Tensor,
    *,
    heads: int,
    num_images: int = 0,
    labels: Tensor | None = None,
    temporal: tuple[int, ...],
    patch: int = 2,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Noise, variance (B, n, C, h, w) and the clip's tokens after the spatial blocks, one by one."""
    w = weights
    batch, frames, channels, height, width_px = z.shape
    rows, cols = height // patch, width_px // patch
    width, clip = w["x_embedder.proj.weight"].shape[0], frames - num_images

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        variance = x.var(-1, unbiased=False, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def block(number: int, x: Tensor, time: Tensor) -> Tensor:
        """Tokens (N, d) of one sequence."""
        name, size = f"blocks.{number}", width // heads
        parts = linear(f"{name}.adaLN_modulation.1", silu(time)).chunk(6)
        y = norm(x) * (1 + parts[1]) + parts[0]
        q, k, v = linear(f"{name}.attn.qkv", y).chunk(3, dim=-1)
        of_heads = []
        for head in range(heads):
            one = slice(head * size, (head + 1) * size)
            score = q[:, one] @ k[:, one].T * size**-0.5
            of_heads.append(torch.softmax(score, -1) @ v[:, one])
        x = x + parts[2] * linear(f"{name}.attn.proj", torch.cat(of_heads, dim=-1))
        y = norm(x) * (1 + parts[4]) + parts[3]
        return x + parts[5] * linear(f"{name}.mlp.fc2", gelu(linear(f"{name}.mlp.fc1", y)))

    depth = len({key.split(".")[1] for key in w if key.startswith("blocks.")})
    eps, variance, features = torch.empty_like(z), torch.empty_like(z), [[] for _ in range(depth)]
    for b in range(batch):
        k = torch.arange(128, dtype=torch.float64)
        angles = t[b].double() * 10_000 ** (-k / 128)
        time = torch.cat((angles.cos(), angles.sin()))
        time = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", time)))
        if labels is not None:
            time = time + w["y_embedder.embedding_table.weight"][labels[b]]
        x = torch.empty(frames, rows * cols, width, dtype=torch.float64)
        for frame in range(frames):
            for place in range(rows * cols):
                i, j = divmod(place, cols)
                cut = z[b, frame, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                x[frame, place] = (w["x_embedder.proj.weight"] * cut).sum((1, 2, 3)) + w[
                    "x_embedder.proj.bias"
                ]
        x = x + frame_positions(rows, cols, width)
        for number in range(depth):
            if number == temporal[0]:
                x = torch.cat((x[:clip] + positions(torch.arange(clip), width)[:, None], x[clip:]))
            if number in temporal:
                along = [block(number, x[:clip, place], time) for place in range(rows * cols)]
                x = torch.cat((torch.stack(along, dim=1), x[clip:]))
            else:
                x = torch.stack([block(number, x[frame], time) for frame in range(frames)])
                features[number].append(x[:clip])
        shift, scale = linear("final_layer.adaLN_modulation.1", silu(time)).chunk(2)
        y = linear("final_layer.linear", norm(x) * (1 + scale) + shift)
        for place in range(rows * cols):
            i, j = divmod(place, cols)
            for p in range(patch):
                for q in range(patch):
                    first = (p * patch + q) * 2 * channels
                    here = y[:, place, first : first + 2 * channels]
                    eps[b, :, :, i * patch + p, j * patch + q] = here[:, :channels]
                    variance[b, :, :, i * patch + p, j * patch + q] = here[:, channels:]
    return eps, variance, [torch.stack(found) for found in features if found]


def published_state(
    width: int,
    depth: int,
    *,
    tokens: int = 64,
    frames: int = 16,
    classes: int = 0,
    adapter: int = 0,
    unused: bool = True,
) -> dict[str, Tensor]:
    """Random weights under every key, and in every shape, of a published checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj": (width, 4, 2, 2)}
    shapes |= {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    for number in range(depth):
        block = f"blocks.{number}"
        shapes |= {
            f"{block}.attn.qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.fc1": (4 * width, width),
            f"{block}.mlp.fc2": (width, 4 * width),
            f"{block}.adaLN_modulation.1": (6 * width, width),
        }
    shapes |= {"final_layer.linear": (32, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
    if unused:
        shapes |= {"linear": (1152, 384), "linear_2": (1152, 1536)}
    state = {f"{name}.weight": 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": 0.2 * torch.randn(shape[0]) for name, shape in shapes.items()}
    if classes:
        state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, width)
    if adapter:
        state["cov.weight"] = torch.randn(width, adapter, 2, 2)
    side = math.isqrt(tokens)
    state["pos_embed"] = frame_positions(side, side, width)[None].float()
    state["temp_embed"] = positions(torch.arange(frames), width)[None].float()
    return state
