"""Published checkpoints of Endora and of Latte, whose weights have the same names: a file -> `Endora`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medsora.baselines.endora.model import Endora, place_table, time_table
from medsora.baselines.published import load_state, read_checkpoint
from medsora.config.presets import ENDORA_PRESETS
from medsora.errors import BadInput

# Layers of the published class that its forward pass never calls.
UNUSED = tuple(f"{layer}.{kind}" for layer in ("linear", "linear_2") for kind in ("weight", "bias"))
PUBLISHED_NAMES = {
    "patches.projection": "x_embedder.proj",
    "time.mlp": "t_embedder.mlp",
    "final.": "final_layer.",
    ".modulation": ".adaLN_modulation.1",
    ".qkv": ".attn.qkv",
    ".projection": ".attn.proj",
    ".widen": ".mlp.fc1",
    ".narrow": ".mlp.fc2",
    "labels.weight": "y_embedder.embedding_table.weight",
    "adapter.weight": "cov.weight",
}
PATCHES, LABELS = "x_embedder.proj.weight", PUBLISHED_NAMES["labels.weight"]
ADAPTER = PUBLISHED_NAMES["adapter.weight"]
POSITION_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Published:
    """A model, and the clip that its position tables are for: frames, and the latents' side."""

    model: Endora
    frames: int
    latent_side: int


def read_published(path: str | Path, *, heads: int | None = None, layout: str | None = None) -> Published:
    """Load a published file strictly: the moving average (`ema`) if it holds one, else `model`.

    Only tensors, plain containers and `argparse.Namespace` are read. `heads` and `layout` are not in the
    weights: by default the heads are those of the preset of the same width and depth, and the layout is
    "separate" if the file's own arguments name a model `..._var`, else "interlaced".

    Raises:
        BadInput: if the file is damaged or holds something else; the sentence names the first difference.
    """
    state, content = read_checkpoint(path, "ema", "model")
    if layout is None:
        named = str(getattr(content.get("args"), "model", ""))
        layout = "separate" if named.endswith("_var") else "interlaced"
    return from_published(state, heads=heads, layout=layout, source=str(path))


def from_published(
    state: dict[str, Tensor], *, heads: int | None = None, layout: str = "interlaced", source: str
) -> Published:
    """Make a model of published weights; `source` names them in errors. The tensors themselves are taken.

    Raises:
        BadInput: as `read_published`.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in UNUSED}
    if PATCHES not in state or state[PATCHES].ndim != 4:
        raise BadInput(f"{source} lacks {PATCHES} and is no checkpoint of Endora or Latte.")
    width, channels, patch, _ = state[PATCHES].shape
    depth = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    with torch.device("meta"):
        model = Endora(
            in_channels=channels,
            width=width,
            depth=depth,
            patch=patch,
            heads=heads or _usual_heads(width, depth, source),
            layout=layout,
            classes=len(state[LABELS]) - 1 if LABELS in state else 0,
            prior_width=state[ADAPTER].shape[1] if ADAPTER in state else 0,
        )
    positions, times = (_positions(state, name, width, source) for name in ("pos_embed", "temp_embed"))
    side = math.isqrt(len(positions))
    sizes = torch.device("cpu"), torch.float32
    _require_same(
        positions,
        place_table(side, side, width, *sizes) if side**2 == len(positions) else None,
        f"{source}: pos_embed",
    )
    _require_same(times, time_table(len(times), width, *sizes)[:, 0], f"{source}: temp_embed")
    load_state(model, state, PUBLISHED_NAMES, source=source, systems="Endora or Latte")
    return Published(model.eval(), len(times), side * patch)


def _usual_heads(width: int, depth: int, source: str) -> int:
    for sizes in ENDORA_PRESETS.values():
        if (sizes["width"], sizes["depth"]) == (width, depth):
            return sizes["heads"]
    raise BadInput(
        f"{source} has {depth} blocks of width {width}, which is no published size, and its weights do not "
        "determine the number of heads; set --heads."
    )


def _positions(state: dict[str, Tensor], name: str, width: int, source: str) -> Tensor:
    """Take the table (1, N, d) out of `state`; return it without the 1."""
    table = state.pop(name, None)
    if table is None or table.ndim != 3 or table.shape[::2] != (1, width):
        problem = "is missing" if table is None else f"is {tuple(table.shape)}"
        raise BadInput(f"{source}: {name} {problem}, expected (1, N, {width}); give a published checkpoint.")
    return table[0].float()


def _require_same(table: Tensor, expected: Tensor | None, name: str) -> None:
    if expected is None or not torch.allclose(table, expected, atol=POSITION_TOLERANCE, rtol=0):
        raise BadInput(f"{name} is not the fixed table of sines and cosines that this model computes.")
