"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified when read.

A checkpoint is a folder `step-0000500` that holds model folders, `optimizer.safetensors`, `state.json` and,
written last, `manifest.json` with the size and SHA-256 of every other file, the run's config and what code
and libraries wrote it. Beside it may lie `damaged-...`, which was set aside, and `.writing-...`, which a kill
left and the next run removes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.runtime.files import write_json, written_folder
from medsora.runtime.versions import code_digest, library_versions
from medsora.saved.find import CHECKPOINT_FORMAT, checkpoint_format, checkpoint_problem

log = logging.getLogger(__name__)

SPARE = 1.05  # of the free space that a checkpoint needs: folders and manifests


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and the JSON state stored with it."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that were finished when it was written."""
        return self.state["step"]

    def value(self, key: str, kind: type) -> Any:
        """Return an entry of the state; raises `BadInput` if it is missing or of another type."""
        if type(found := self.state.get(key)) is not kind:
            raise BadInput(
                f"{self.folder / 'state.json'} has {found!r} as '{key}' instead of a {kind.__name__}: "
                "another version of MedSora wrote it; go on with that version, or take another run.name."
            )
        return found


def save_checkpoint(
    root: Path,
    step: int,
    write_models: Callable[[Path], None],
    optimizer: dict[str, torch.Tensor],
    state: dict[str, Any],
    *,
    keep: int,
    keep_every: int | None = None,
    config: dict[str, Any] | None = None,
    model_bytes: int = 0,
) -> Path:
    """Write `root/step-STEP` atomically, then drop all but the last `keep` and every `keep_every`-th step.

    `write_models` puts the model folders, about `model_bytes`, into the folder it is given; `config` goes
    into the manifest. Raises `BadInput` when the disk has no room; the checkpoints that are there stay.
    """
    final = root / f"step-{step:07d}"
    if final.exists() and checkpoint_problem(final) is None:
        return final
    _require_space(root, model_bytes + sum(tensor.nbytes for tensor in optimizer.values()))
    with written_folder(final) as working:
        write_models(working)
        save_file(optimizer, working / "optimizer.safetensors")
        write_json(working / "state.json", {**state, "step": step}, sort_keys=True)
        manifest = {
            "format": CHECKPOINT_FORMAT,
            "files": _digest_folder(working),
            "config": config,
            "code_sha256": code_digest(),
            "versions": library_versions(),
        }
        write_json(working / "manifest.json", manifest, sort_keys=True)
    _prune(root, keep, keep_every)
    return final


def latest_checkpoint(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None; removes what a kill left half-written or -deleted.

    A damaged one is renamed to `damaged-...`, `say` is told so in one sentence, and the one before is tried.
    Raises `BadInput` for one that another version of MedSora wrote in a form unknown here.
    """
    for unfinished in root.glob(".*-step-*"):
        shutil.rmtree(unfinished)
    candidates = sorted(root.glob("step-*"), reverse=True)
    for folder in candidates:
        if (found := checkpoint_format(folder)) not in (None, CHECKPOINT_FORMAT):
            raise BadInput(
                f"{folder} was written by another version of MedSora (checkpoint format {found}, this one "
                f"reads {CHECKPOINT_FORMAT}); go on with that version, or take another run.name."
            )
        problem = checkpoint_problem(folder)
        if problem is None:
            state = _read_state(folder)
            if isinstance(state, dict):
                return Checkpoint(folder, state)
            problem = state
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


def _read_state(folder: Path) -> dict[str, Any] | str:
    """Return the state of a checkpoint whose files are as its manifest says, or what is wrong with it."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"state.json cannot be read ({type(error).__name__})"
    if not isinstance(state, dict) or f"step-{state.get('step')!r:0>7}" != folder.name:
        return "state.json does not say the step that the folder's name says"
    return state


def _digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def _require_space(root: Path, needed: int) -> None:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed * SPARE:
        raise BadInput(
            f"{root} has {free / 2**20:.0f} MiB free but a checkpoint needs {needed / 2**20:.0f} MiB; "
            "make room and start the same command again, it goes on from the last checkpoint."
        )


def _prune(root: Path, keep: int, keep_every: int | None) -> None:
    for folder in sorted(root.glob("step-*"))[:-keep]:
        if not keep_every or int(folder.name.removeprefix("step-")) % keep_every:
            try:
                shutil.rmtree(folder.rename(folder.with_name(f".dropping-{folder.name}")))  # never half there
            except OSError as error:
                log.warning("the old checkpoint %s cannot be removed: %s", folder, error)
