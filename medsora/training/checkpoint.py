"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified when read.

A checkpoint is a folder `step-0000500` that holds model folders, `optimizer.safetensors`, `state.json` and,
written last, `manifest.json` with the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsora import __version__
from medsora.errors import BadInput

FORMAT = 1
LIBRARIES = ("torch", "diffusers", "accelerate", "timm", "safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and the JSON state stored with it."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that were finished when it was written."""
        return self.state["step"]


def save_checkpoint(
    root: Path,
    step: int,
    write_models: Callable[[Path], None],
    optimizer: dict[str, torch.Tensor],
    state: dict[str, Any],
    *,
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write `root/step-STEP` atomically, then drop all but the last `keep` and every `keep_every`-th step.

    `write_models` puts the model folders into the folder it is given. Raises `BadInput` when the disk has no
    room; the checkpoints that are there stay as they are.
    """
    root.mkdir(parents=True, exist_ok=True)
    _require_space(root)
    final = root / f"step-{step:07d}"
    if final.exists() and checkpoint_problem(final) is None:
        return final
    working = root / f".writing-{final.name}"
    if working.exists():
        shutil.rmtree(working)
    working.mkdir()
    try:
        write_models(working)
        save_file(optimizer, working / "optimizer.safetensors")
        write_json(working / "state.json", {**state, "step": step})
        manifest = {"format": FORMAT, "files": _digest_folder(working), "versions": library_versions()}
        write_json(working / "manifest.json", manifest)
    except OSError as error:
        shutil.rmtree(working, ignore_errors=True)
        raise BadInput(
            f"the checkpoint of step {step} cannot be written to {root}: {error.strerror or error}; the ones "
            "before it are untouched, so make room and start the same command again."
        ) from error
    for path in sorted(working.rglob("*")):
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    working.rename(final)
    _flush(root)
    _prune(root, keep, keep_every)
    return final


def latest_checkpoint(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None.

    A damaged one is renamed to `damaged-...`, `say` is told so in one sentence, and the one before is tried.
    """
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem = checkpoint_problem(folder)
        if problem is None:
            return Checkpoint(folder, json.loads((folder / "state.json").read_text(encoding="utf-8")))
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        say(f"the checkpoint {folder} is damaged ({problem}); it is set aside as {aside.name}.")
    return None


def checkpoint_problem(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint (a file missing, cut or changed), or None if it is whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version of MedSora reads {FORMAT}"
        for name, wanted in files.items():
            path = (folder / name).resolve()
            if folder.resolve() not in path.parents:
                return f"its manifest names a file outside the folder: {name}"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {wanted['size']}"
            if _sha256(path) != wanted["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {type(error).__name__}"
    return None


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        by_name.setdefault(name, {})[field] = value
    if by_name and set(by_name) != set(names):
        raise BadInput(f"{path} belongs to another model: its parameters differ from those that are trained.")
    state = {index: by_name[name] for index, name in enumerate(names) if name in by_name}
    groups = optimizer.state_dict()["param_groups"]
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; raises `BadInput` naming the file if it is missing, cut or no safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as safetensors: {error}.") from error


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"medsora": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def _digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented and with sorted keys."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(root: Path) -> None:
    before = sorted(root.glob("step-*"))
    if not before:
        return
    needed = sum(path.stat().st_size for path in before[-1].rglob("*") if path.is_file())
    free = shutil.disk_usage(root).free
    if free < needed * 1.1:
        raise BadInput(
            f"{root} has {free / 2**20:.0f} MiB free but a checkpoint needs {needed / 2**20:.0f} MiB; "
            "make room and start the same command again, it goes on from the last checkpoint."
        )


def _prune(root: Path, keep: int, keep_every: int | None) -> None:
    for folder in sorted(root.glob("step-*"))[:-keep]:
        if not keep_every or int(folder.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(folder)
