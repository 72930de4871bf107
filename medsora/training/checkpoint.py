"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified when read.

A checkpoint is a folder `step-0000500` that holds model folders, `optimizer.safetensors`, `state.json` and,
written last, `manifest.json` with the size and SHA-256 of every other file.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsora import __version__
from medsora.errors import BadInput
from medsora.model_folder import CHECKPOINT_FORMAT, checkpoint_problem, sha256

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
    _require_space(root)
    final = root / f"step-{step:07d}"
    if final.exists() and checkpoint_problem(final) is None:
        return final
    with written_folder(final) as working:
        write_models(working)
        save_file(optimizer, working / "optimizer.safetensors")
        write_json(working / "state.json", {**state, "step": step})
        files = _digest_folder(working)
        manifest = {"format": CHECKPOINT_FORMAT, "files": files, "versions": library_versions()}
        write_json(working / "manifest.json", manifest)
    _prune(root, keep, keep_every)
    return final


@contextmanager
def written_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside `final` to write to; flushed and whole, it takes `final`'s place.

    Raises `BadInput` when the disk refuses; what was there before stays as it is.
    """
    working = final.with_name(f".writing-{final.name}")
    try:
        if working.exists():
            shutil.rmtree(working)
        working.mkdir(parents=True)
        yield working
        for path in sorted(working.rglob("*")):
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        working.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:  # safetensors does not raise `OSError` on a full disk
        shutil.rmtree(working, ignore_errors=True)
        raise BadInput(
            f"{final} cannot be written ({getattr(error, 'strerror', None) or error}); what was there before "
            "is untouched, so make room and start the same command again."
        ) from error


def latest_checkpoint(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None.

    A damaged one is renamed to `damaged-...`, `say` is told so in one sentence, and the one before is tried.
    """
    candidates = sorted(root.glob("step-*"), reverse=True)
    for folder in candidates:
        problem = checkpoint_problem(folder)
        if problem is None:
            return Checkpoint(folder, json.loads((folder / "state.json").read_text(encoding="utf-8")))
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        say(f"the checkpoint {folder} is damaged ({problem}); it is set aside as {aside.name}.")
    if candidates:
        say("no whole checkpoint is left; the run begins anew.")
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
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


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
