"""Lets the benchmarks run on a machine that has PyTorch, Triton, einops and local-attention, and no network.

The denoiser takes little from diffusers and safetensors: a base class, its settings kept, schedulers; of
local-attention it takes nothing that needs hyper-connections. Where those packages are missing, plain
stand-ins take their place, in this process alone. mamba-ssm is used
from its Python files without its compiled parts, if they were brought along.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def make_do() -> list[str]:
    """Put stand-ins where packages are missing; return the missing packages' names."""
    packages = ("diffusers", "safetensors", "hyper_connections")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if "diffusers" in missing:
        _diffusers()
    if "safetensors" in missing:
        _module("safetensors", SafetensorError=type("SafetensorError", (Exception,), {}), safe_open=None)
        _module("safetensors.torch", load_file=None, save_file=None)
    if "hyper_connections" in missing:
        _module("hyper_connections", get_init_and_expand_reduce_stream_functions=None)
    package = importlib.util.find_spec("mamba_ssm")
    if package is None:
        missing.append("mamba_ssm")
    elif importlib.util.find_spec("selective_scan_cuda") is None:
        # Its __init__ wants the compiled parts and transformers; the SSD kernels need neither.
        _module("mamba_ssm", package.submodule_search_locations)
    return missing


class ModelMixin(nn.Module):
    """What the denoiser uses of diffusers' class of this name."""

    @property
    def device(self) -> torch.device:
        """That of the first parameter."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the first parameter."""
        return next(self.parameters()).dtype


class ConfigMixin:
    """Its `config` holds what the constructor was given."""


class Settings(dict):
    """Settings by key and by attribute, as diffusers' FrozenDict."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:  # copying looks up methods that a dictionary does not have
            raise AttributeError(name)
        return self[name]


@dataclasses.dataclass
class BaseOutput:
    """A plain dataclass, where diffusers' is also a dictionary."""


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Keep a constructor's arguments as `config`."""

    @functools.wraps(init)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        self.config = Settings({k: v for k, v in bound.arguments.items() if k != "self"})
        init(self, *args, **kwargs)

    return keeping


def _diffusers() -> None:
    scheduler = type("Scheduler", (), {})
    _module(
        "diffusers",
        ModelMixin=ModelMixin,
        ConfigMixin=ConfigMixin,
        DDIMScheduler=scheduler,
        DPMSolverMultistepScheduler=scheduler,
    )
    _module("diffusers.configuration_utils", register_to_config=register_to_config)
    _module("diffusers.utils", BaseOutput=BaseOutput, SAFETENSORS_WEIGHTS_NAME="model.safetensors")
    _module("diffusers.schedulers")
    _module("diffusers.schedulers.scheduling_ddim", DDIMSchedulerOutput=BaseOutput)


def _module(name: str, folders: Iterable[str] = (), **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__spec__.submodule_search_locations = module.__path__ = list(folders)
    vars(module).update(contents)
    sys.modules[name] = module
    return module
