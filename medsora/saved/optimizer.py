"""The state of an Adam-like optimizer as named tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medsora.errors import BadInput


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Return an Adam-like optimiser's state as named tensors; `names` follow its parameters' order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], path: Path) -> None:
    """Put the state that `optimizer_tensors` gave back; raises `BadInput` if the names do not match."""
    tensors = read_tensors(path)
    parameters = dict(
        zip(names, [p for group in optimizer.param_groups for p in group["params"]], strict=True)
    )
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        by_name.setdefault(name, {})[field] = value
    if by_name and set(by_name) != set(names):
        raise BadInput(f"{path} belongs to another model: its parameters differ from those that are trained.")
    for name, fields in by_name.items():
        shapes = {key: tuple(value.shape) for key, value in fields.items() if value.is_floating_point()}
        wanted = tuple(parameters[name].shape)
        if shapes != {"step": (), "exp_avg": wanted, "exp_avg_sq": wanted}:
            raise BadInput(f"{path} belongs to another model: the state of {name} does not fit it.")
    state = {index: by_name[name] for index, name in enumerate(names) if name in by_name}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; raises `BadInput` naming the file if it is missing, cut or no safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as safetensors: {error}.") from error
