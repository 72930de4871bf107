"""Parameters of a denoiser part by part: the table behind the counts of Table 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medsora.denoiser.model import MedSora


def parameter_table(
    model: str | MedSora, latent_size: tuple[int, int] = (16, 16), **overrides: Any
) -> dict[str, int]:
    """Parameters per part, and their total.

    With one head, as the authors' code has, the frequencies of each block's rotary embedding count too, as in
    Table 1: they are a buffer of that code, which is half as long as a head is wide.

    Args:
        model: a preset's name (nothing is allocated for it) or a model.
        latent_size: (h, w) for which the fixed position table is counted, as the paper counts it; 16x16 is
            128x128 pixels.
        overrides: settings of a named preset to replace, as in `MedSora.from_preset`.

    Raises:
        BadInput: if the preset is unknown.
    """
    if isinstance(model, str):
        with torch.device("meta"):
            model = MedSora.from_preset(model, **overrides)
    blocks = model.blocks
    patch = model.config.patch
    table = {
        "patch embedding": _count(model.patches),
        "position table": latent_size[0] // patch * (latent_size[1] // patch) * model.config.width,
        "time embedding": _count(model.time),
        **({"label embedding": _count(model.labels)} if model.labels is not None else {}),
        "modulation": sum(_count(block.modulation) for block in blocks),
        "norms": sum(
            _count(norm)
            for block in blocks
            for norm in (block.attention_norm, block.spatial_norm, block.temporal_norm)
            if norm is not None
        ),
        **{
            part: sum(_count(block.get_submodule(name)) for block in blocks)
            for name, part in _branches(model).items()
        },
        "final layer": _count(model.final),
    }
    if model.config.heads == 1 and model.config.local_attention:
        table["rotary frequencies"] = len(blocks) * (model.config.width // 2)
    return table | {"total": sum(table.values())}


def _branches(model: MedSora) -> dict[str, str]:
    """The branches that each block has, and what they are called."""
    kinds = {name: model.config[name].replace("mamba", "Mamba") for name in ("spatial", "temporal")}
    names = {"attention": "local attention"} if model.config.local_attention else {}
    return names | {name: f"{name} {kind}" for name, kind in kinds.items() if kind != "none"}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
