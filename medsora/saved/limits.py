"""The one schema of model folders, which may come from strangers: types, ranges, sizes.

Everything is checked before anything is built from it, so that no folder costs much time or
memory: files are plain files of bounded size, every setting has the type of its default and lies in
a range, and the weights are exactly those of the model that the settings describe.
"""

from __future__ import annotations

import inspect
import json
import math
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from diffusers import SchedulerMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from medsora.diffusion import TRAIN_STEPS
from medsora.errors import BadInput, one_line
from medsora.flow_prior.weights import MAX_TENSORS
from medsora.runtime.digests import Damaged, unsealed
from medsora.runtime.files import read_patiently
from medsora.saved.manifest import refuse_changed_part

AGAIN = "save or copy the model again"
MAX_JSON_BYTES = 4 * 2**20
MAX_HEADER_BYTES = 8 * 2**20  # XL's 2,000 tensors need 0.2 MiB
MAX_DRAWN_PARAMETERS = 10**9  # parameters of a base without weights; CogVideoX's has 0.2e9
MAX_CHARACTERS = 1000  # maximum length of a word or name; a folder's, which may be a label, is at most 255
MAX_NUMBER = 10**6  # maximum of a setting without a range of its own
MAX_ENTRIES = 1000  # maximum length of a list without a limit of its own; a schedule has 1000 betas
FLOATING = ("F64", "F32", "F16", "BF16")
MAX_FPS = 1000
MAX_CLIP_PIXELS = 2**30  # frames x height x width
RANGES = {
    # the clip
    "frames": (1, 4097),
    "size": (1, 8192),
    "fps": (1e-3, MAX_FPS),
    "image_latents": (0, 4096),
    "given_frames": (1, 4096),
    # the denoiser
    "in_channels": (1, 1024),
    "width": (4, 2**14),
    "depth": (1, 512),
    "patch": (1, 64),
    "heads": (1, 1024),
    "window": (1, 128),
    "d_state": (1, 4096),
    "headdim": (1, 4096),
    "expand": (1, 64),
    "d_conv": (1, 64),
    "dropout": (0, 1),
    "classes": (0, 10_000),
    # the VAE
    "out_channels": (1, 1024),
    "latent_channels": (1, 1024),
    "block_out_channels": (1, 2**13),
    "layers_per_block": (1, 32),
    "norm_num_groups": (1, 2**13),
    "norm_eps": (0, 1),
    "sample_height": (8, 2**16),
    "sample_width": (8, 2**16),
    "temporal_compression_ratio": (1, 64),
    "scaling_factor": (1e-6, MAX_NUMBER),
    # the scheduler
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "trained_betas": (0, 1),
    "solver_order": (1, 3),
    "lambda_min_clipped": (-math.inf, MAX_NUMBER),
}
MAX_LEVELS = 8  # resolutions in a VAE; more take long to build
MAX_ENTRIES_OF = {"labels": RANGES["classes"][1]} | dict.fromkeys(
    ("block_out_channels", "down_block_types", "up_block_types"), MAX_LEVELS
)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises `BadInput` naming the file if it is missing or something else."""
    content = _bounded(path, MAX_JSON_BYTES)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:MAX_CHARACTERS]
        raise BadInput(f"{path} is not JSON ({one_line(reason)}); {AGAIN}.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object; {AGAIN}.")
    try:
        return unsealed(value)
    except Damaged as error:
        raise BadInput(f"{path} is damaged ({error}); copy it again, or let it be written anew.") from error


def _bounded(path: Path, most: int) -> bytes:
    try:
        about = read_patiently(Path.stat, path)
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{path} is no file; {AGAIN}.")
        if about.st_size > most:
            raise BadInput(f"{path} has {about.st_size:,} bytes, more than {most:,}; {AGAIN}.")
        return read_patiently(Path.read_bytes, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); {AGAIN}.") from error


def check_value(key: str, value: Any, kind: type | tuple[type, ...], source: str) -> None:
    """Raise `BadInput` unless a setting has a type in `kind` (int stands for float too), within its range.

    A list may hold several such values. The sentence begins with `source`.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    entries = value if isinstance(value, list | tuple) else [value]
    if len(entries) > (most := MAX_ENTRIES_OF.get(key, MAX_ENTRIES)):
        raise BadInput(f"{source}: {key} has {len(entries):,} entries, more than {most:,}; {AGAIN}.")
    for entry in entries:
        _check_one(key, entry, kinds, source)


def _check_one(key: str, value: Any, kinds: tuple[type, ...], source: str) -> None:
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        known = " or ".join(KINDS[kind] for kind in kinds)
        raise BadInput(f"{source}: {key} is {shown(value)} but must be {known}; {AGAIN}.")
    if isinstance(value, str) and (len(value) > MAX_CHARACTERS or not value.isprintable()):
        raise BadInput(f"{source}: {key} is {shown(value)} but must be a printable word; {AGAIN}.")
    if type(value) in (int, float):
        least, most = RANGES.get(key, (-MAX_NUMBER, MAX_NUMBER))
        if not least <= value <= most:
            raise BadInput(
                f"{source}: {key} is {shown(value)} but must lie between {least:g} and {most:g}; {AGAIN}."
            )


def shown(value: Any) -> str:
    """Return a value from a file as a sentence can hold it: short and printable."""
    text = one_line(repr(value)) if type(value) in (bool, int, float, str) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."


def check_settings(
    values: Mapping[str, Any],
    build: Callable[..., Any],
    source: str,
    *,
    others: bool = False,
    base: type | None = None,
) -> None:
    """Raise `BadInput` unless `values` are settings that `build` takes, each of the type of its default.

    Or `others`, which it leaves alone; `base_config` holds settings of `base`.
    Where the default is None a number or a list of numbers may stand; names that begin with "_" do not count.
    """
    known = inspect.signature(build).parameters
    for key, value in values.items():
        if key.startswith("_") or (others and key not in known):
            continue
        if key not in known:
            raise BadInput(f"{source}: {shown(key)} is no setting that is known here; {AGAIN}.")
        usual, annotation = known[key].default, known[key].annotation
        choices = [word for part in (annotation, *get_args(annotation)) for word in _words(part)]
        listed, wants_list = isinstance(value, list | tuple), isinstance(usual, list | tuple)
        if value is None and (usual is None or "None" in str(annotation)):
            continue
        if key == "base_config":
            if not isinstance(value, dict):
                raise BadInput(f"{source}: base_config is {shown(value)} but must be an object; {AGAIN}.")
            check_settings(value, base.__init__, f"{source}, base_config")
        elif choices and value not in choices:
            raise BadInput(f"{source}: {key} is {shown(value)} but must be {' or '.join(choices)}; {AGAIN}.")
        elif listed != wants_list and (usual is not None or isinstance(annotation, type)):
            what = "a list" if wants_list else KINDS.get(type(usual), "left out")
            raise BadInput(f"{source}: {key} is {shown(value)} but must be {what}; {AGAIN}.")
        elif not choices:
            first = next(iter(usual), 0) if wants_list else usual
            check_value(key, value, (float, bool) if first is None else type(first), source)


def _words(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def check_scheduler_settings(values: Mapping[str, Any], kind: type[SchedulerMixin], source: str) -> None:
    """Raise `BadInput` unless `kind` can be built with `values` at the cost of any scheduler."""
    check_settings(values, kind.__init__, source, others=True)  # diffusers keeps those of the class before
    if values.get("num_train_timesteps", TRAIN_STEPS) != TRAIN_STEPS:
        raise BadInput(
            f"{source}: num_train_timesteps is {values['num_train_timesteps']}, but the denoiser predicts "
            f"noise at timesteps 0 to {TRAIN_STEPS - 1}; num_train_timesteps can be {TRAIN_STEPS}."
        )
    betas = values.get("trained_betas")
    if betas is not None and (not isinstance(betas, list) or len(betas) != TRAIN_STEPS):
        raise BadInput(f"{source}: trained_betas must be {TRAIN_STEPS} numbers; {AGAIN}.")


def check_clip(values: Mapping[str, Any], source: str) -> None:
    """Raise `BadInput` unless frames, size, fps and image_latents are those of a clip that can be sampled."""
    for key, kind in (("frames", int), ("image_latents", int), ("fps", (int, float))):
        if isinstance(values[key], list):
            raise BadInput(f"{source}: {key} is a list but must be a number; {AGAIN}.")
        check_value(key, values[key], kind, source)
    if not isinstance(values["size"], list) or len(values["size"]) != 2:
        raise BadInput(f"{source}: size must be [height, width] in pixels; {AGAIN}.")
    check_value("size", values["size"], int, source)
    if values["frames"] * math.prod(values["size"]) > MAX_CLIP_PIXELS:
        raise BadInput(f"{source}: frames x height x width is beyond {MAX_CLIP_PIXELS:,} pixels; {AGAIN}.")


def check_part(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder that holds a readable config and complete safetensors of bounded size.

    Raises `BadInput`, naming the file, for another folder.
    """
    settings = read_json_object(folder / "config.json")
    _read_shapes(folder)
    return settings


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a folder's one safetensors file. Raises `BadInput`."""
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        raise BadInput(f"{folder} holds weights in parts; {AGAIN} as one safetensors file.")
    return shapes_in(folder / SAFETENSORS_WEIGHTS_NAME)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a safetensors file of a model. Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; save or copy the model again (only safetensors are read).")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise BadInput(f"{path} has a header of {length:,} bytes, more than {MAX_HEADER_BYTES:,}.")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise BadInput(f"{path} names {len(header):,} tensors, more than {MAX_TENSORS:,}: no model has.")
        with safe_open(path, framework="pt"):  # compares offsets and sizes with the file
            pass
        if strange := sorted({str(tensor["dtype"]) for tensor in header.values()} - set(FLOATING)):
            raise BadInput(f"{path} holds {shown(strange[0])}; weights are {', '.join(FLOATING)}.")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except BadInput:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error, TypeError, KeyError) as error:
        reason = one_line(str(error))[:MAX_CHARACTERS]
        raise BadInput(f"{path} is not a complete safetensors file ({reason}); copy it again.") from error
    except AttributeError as error:
        raise BadInput(f"{path} is not a complete safetensors file (its header); copy it again.") from error


def check_model(folder: Path, kind: type[nn.Module]) -> None:
    """Raise `BadInput` unless the folder holds the weights of the `kind` that its config describes.

    The model is built without memory, so that a huge config costs nothing.
    """
    settings, shapes = read_json_object(folder / "config.json"), _read_shapes(folder)
    source = str(folder / "config.json")
    check_settings(settings, kind.__init__, source, base=getattr(kind, "base_class", None))
    refuse_changed_part(folder)
    _check_shapes(shapes, _described(settings, kind, folder), f"the weights in {folder}")


def check_base(config: Path, weights: Path | None, kind: type[nn.Module]) -> None:
    """Raise `BadInput` unless a model of `kind` can be made of a JSON file of settings and of `weights`.

    Without `weights`, which are drawn then, it may have `MAX_DRAWN_PARAMETERS`. Settings that are not known
    are left to `vae.base`, which names the nearest one.
    """
    settings = read_json_object(config)
    check_settings(settings, kind.__init__, str(config), others=True)
    if any(key not in inspect.signature(kind).parameters for key in settings if not key.startswith("_")):
        return
    model = _described(settings, kind, config)
    if weights is not None:
        _check_shapes(shapes_in(weights), model, str(weights))
    elif (parameters := sum(tensor.numel() for tensor in model.parameters())) > MAX_DRAWN_PARAMETERS:
        raise BadInput(f"{config} describes {parameters:,} parameters, more than {MAX_DRAWN_PARAMETERS:,}.")


def _described(settings: Mapping[str, Any], kind: type[nn.Module], source: Path) -> nn.Module:
    """Return the model that `settings` describe, without memory for its weights. Raises `BadInput`."""
    try:
        with torch.device("meta"):
            return kind(**{key: value for key, value in settings.items() if not key.startswith("_")})
    except BUILDING_ERRORS as error:
        raise BadInput(f"{source} cannot be loaded as a {kind.__name__}: {first_sentence(error)}.") from error


def _check_shapes(shapes: dict[str, tuple[int, ...]], model: nn.Module, weights: str) -> None:
    """Raise `BadInput` unless weights of these shapes are exactly those of `model`."""
    model._fix_state_dict_keys_on_load(shapes)  # as diffusers does: its oldest files name attention otherwise
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise BadInput(
                f"{weights} do not fit the config beside them (first difference: "
                f"{shown(name)}); save the model again or take another folder."
            )


# What PyTorch, diffusers and einops raise for settings that are in range, each alone, but not together.
BUILDING_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError)
BUILDING_ERRORS += (OSError, RuntimeError, SafetensorError, TypeError, ValueError)


def first_sentence(error: Exception) -> str:
    """Return why something could not be built, in one line."""
    return one_line(" ".join(str(error).split()).partition(". ")[0])[:300].rstrip(".;")
