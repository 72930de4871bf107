"""Optimisers by name, and the state of one as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medsora.errors import BadInput
from medsora.runtime.files import read_patiently


class _Kind(NamedTuple):
    """A class of `torch.optim`, whether PyTorch has it fused, and its state per parameter.

    `scalars` are numbers, `moments` tensors of the parameter's shape.
    """

    make: type[torch.optim.Optimizer]
    fused: bool
    scalars: tuple[str, ...]
    moments: tuple[str, ...]


_ADAM = ("step",), ("exp_avg", "exp_avg_sq")
_KINDS = {
    "adamw": _Kind(torch.optim.AdamW, True, *_ADAM),
    "adam": _Kind(torch.optim.Adam, True, *_ADAM),
    "sgd": _Kind(torch.optim.SGD, True, (), ("momentum_buffer",)),
    "rmsprop": _Kind(torch.optim.RMSprop, False, ("step",), ("square_avg",)),
    "nadam": _Kind(torch.optim.NAdam, False, ("step", "mu_product"), ("exp_avg", "exp_avg_sq")),
    "radam": _Kind(torch.optim.RAdam, False, *_ADAM),
}


def build_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    *,
    lr: float,
    betas: Sequence[float],
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return the optimiser `name` (`config.choices.OPTIMIZERS`), fused where PyTorch has it.

    `betas` are Adam's two; SGD takes the first as its momentum, RMSprop the second as its smoothing constant.
    """
    options: dict[str, Any] = {"betas": tuple(betas)}
    if name == "sgd":
        options = {"momentum": betas[0]}
    elif name == "rmsprop":
        options = {"alpha": betas[1]}
    if _KINDS[name].fused:
        options["fused"] = True
    return _KINDS[name].make(parameters, lr=lr, weight_decay=weight_decay, **options)


def moments(name: str) -> int:
    """Return how many tensors of a parameter's size the optimiser `name` keeps for each."""
    return len(_KINDS[name].moments)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Return an optimiser's state as named tensors; `names` follow its parameters' order."""
    tensors = {}
    for name, parameter in _parameters(optimizer, names).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # SGD's buffer without momentum
                tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], path: Path) -> None:
    """Restore the state that `optimizer_tensors` returned. Raises `BadInput` if names or shapes differ."""
    tensors = read_tensors(path)
    kind = next(kind for kind in _KINDS.values() if type(optimizer) is kind.make)
    parameters = _parameters(optimizer, names)
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        by_name.setdefault(name, {})[field] = value
    if by_name and set(by_name) != set(names):
        raise BadInput(f"{path} belongs to another model: its parameters differ from those that are trained.")
    for name, fields in by_name.items():
        shapes = {key: tuple(value.shape) for key, value in fields.items() if value.is_floating_point()}
        wanted = tuple(parameters[name].shape)
        if shapes != dict.fromkeys(kind.scalars, ()) | dict.fromkeys(kind.moments, wanted):
            raise BadInput(f"{path} belongs to another model: the state of {name} does not fit it.")
    state = {index: by_name[name] for index, name in enumerate(names) if name in by_name}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.nn.Parameter]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip(names, parameters, strict=True))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; raises `BadInput` naming the file if it is missing, cut or no safetensors."""
    try:
        return read_patiently(load_file, path)
    except BadInput:
        raise
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as safetensors: {error}.") from error
