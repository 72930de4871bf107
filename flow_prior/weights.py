"""Reading weight files of frozen networks safely, and loading them so that nothing is left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return what a `.safetensors` file or a PyTorch checkpoint (tensors and plain containers only) holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {path} does not exist: correct the path.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes make unpicklers raise anything
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): "
            "expected a .safetensors file or a PyTorch state dict of tensors only."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict of named tensors.")
    return state


def load_strictly(model: nn.Module, state: dict[str, Any], source: str | Path, target: str) -> None:
    """Copy `state` into `model`: every name and every shape must agree.

    Args:
        source: where the weights come from, for the error.
        target: what the model is, for the error.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the first one is named.
    """
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} has no place in it" for name in state if name not in wanted]
    for name, tensor in wanted.items():
        found = state.get(name, tensor)
        if not isinstance(found, Tensor):
            problems.append(f"{name} is no tensor")
        elif found.shape != tensor.shape:
            problems.append(f"{name} is {tuple(found.shape)} instead of {tuple(tensor.shape)}")
    if problems:
        others = f" and {len(problems) - 1} other tensors differ" if len(problems) > 1 else ""
        raise ValueError(
            f"{source} does not fit {target}: {problems[0]}{others}; give that model's own weights."
        )
    model.load_state_dict(state, strict=True)
