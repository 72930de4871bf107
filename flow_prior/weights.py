"""Weight files of frozen networks: read safely, verified, and loaded so that nothing is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

DIGEST = "sha256"  # key in the metadata of a safetensors file
MAX_TENSORS = 20_000  # in a weight file


def save_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file with a digest of its tensors, which `read_weights` compares."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, path, metadata={DIGEST: _digest(state)})


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return what a `.safetensors` file or a PyTorch checkpoint (tensors and plain containers only) holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as weights, has more tensors than any network, or its weights
            are not those that `save_weights` wrote.
    """
    path, wanted = Path(path), None
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {path} does not exist: correct the path.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                wanted = (file.metadata() or {}).get(DIGEST)
                state = {name: file.get_tensor(name) for name in file.keys()[: MAX_TENSORS + 1]}
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes make unpicklers raise anything
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): "
            "expected a .safetensors file or a PyTorch state dict of tensors only."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict of named tensors.")
    if len(state) > MAX_TENSORS:
        raise ValueError(
            f"{path} names more than {MAX_TENSORS:,} tensors; give the weight file of one network."
        )
    if wanted is not None and wanted != _digest(state):
        raise ValueError(f"{path} is damaged: its tensors do not match their checksum; copy it again.")
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
        given = state.get(name, tensor)
        if not isinstance(given, Tensor):
            problems.append(f"{name} is no tensor")
        elif given.shape != tensor.shape:
            problems.append(f"{name} is {tuple(given.shape)} instead of {tuple(tensor.shape)}")
    if problems:
        others = f" and {len(problems) - 1} other tensors differ" if len(problems) > 1 else ""
        raise ValueError(
            f"{source} does not fit {target}: {problems[0]}{others}; give that model's own weights."
        )
    model.load_state_dict(state, strict=True)
