"""Shared readers of published checkpoints: the file, the names and the shapes of its tensors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsora.errors import BadInput
from medsora.flow_prior.weights import read_weights


def read_checkpoint(path: str | Path, *entries: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's state dict, the first of `entries` in it or else itself, and the file's contents.

    Only tensors, plain containers and `argparse.Namespace` are read. Raises `BadInput` if it is damaged or
    holds something else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = read_weights(path)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    state = next((content[entry] for entry in entries if entry in content), content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        named = " or ".join(entries)
        raise BadInput(f"{path} holds no state dict of tensors ({named}); give a published checkpoint.")
    return dict(state), content


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], *, source: str, systems: str
) -> None:
    """Load `state` strictly as float32; the tensors themselves are taken.

    `names` are pairs of parts of names, ours and the published ones; `source` names the weights and `systems`
    whose they are in errors. Raises `BadInput`, naming the first difference.
    """
    theirs = {name: published_name(name, names) for name in model.state_dict()}
    expected = {theirs[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise BadInput(f"{source} lacks {name}; give a complete checkpoint of {systems}.")
        if name not in expected:
            raise BadInput(f"{source} holds {name}, which is no weight of {systems}.")
        if tuple(state[name].shape) != expected[name]:
            raise BadInput(
                f"{source}: {name} is {tuple(state[name].shape)} instead of {expected[name]}; give a "
                f"complete checkpoint of {systems}."
            )
    model.load_state_dict({name: state[other].float() for name, other in theirs.items()}, assign=True)


def published_name(name: str, names: Mapping[str, str]) -> str:
    """Return the name of one of our parameters in published checkpoints."""
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name
