"""Checkpoints that are complete or absent: written beside, flushed, renamed; verified when read.

A checkpoint is a folder `step-0000500` that holds model folders, `optimizer.safetensors`, `state.json` and,
written last, `manifest.json` with the size and SHA-256 of every other file, the run's config and what code
and libraries wrote it. Beside it may lie `damaged-...`, which was set aside, and `.writing-...`, which a kill
left and the next run removes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from medsora.errors import BadInput, one_line
from medsora.runtime.files import (
    make_folder,
    nearest_folder,
    read_patiently,
    write_json,
    write_text,
    written_folder,
)
from medsora.runtime.versions import code_digest, library_versions
from medsora.saved.manifest import (
    CHECKPOINT_FORMAT,
    MAX_SHOWN,
    checkpoint_format,
    checkpoint_problem,
    digest_folder,
)

log = logging.getLogger(__name__)

NAME = re.compile(r"step-[0-9]{7,}")  # nothing else in the folder is touched: users keep copies there
UNFINISHED = re.compile(rf"\.(writing|dropping)-{NAME.pattern}")
SET_ASIDE = re.compile(f"damaged-{NAME.pattern}")
SPARE = 1.05  # free space over a checkpoint's bytes: folders and manifests


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
        if type(value := self.state.get(key)) is not kind:
            shown = one_line(repr(value))[:MAX_SHOWN]
            raise BadInput(
                f"{self.folder / 'state.json'} has {shown} as '{key}' instead of a {kind.__name__}: "
                "another version of MedSora wrote it; resume with that version, or take another run.name."
            )
        return value


def save_checkpoint(
    root: Path,
    step: int,
    write_models: Callable[[Path], None],
    optimizer: dict[str, torch.Tensor],
    state: dict[str, Any],
    *,
    keep: int,
    keep_every: int | None = None,
    keep_step: int | None = None,
    config: dict[str, Any] | None = None,
    model_bytes: int = 0,
) -> Path:
    """Write `root/step-STEP` atomically; drop all but the last `keep`, each `keep_every`-th and `keep_step`.

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
            "files": digest_folder(working),
            "config": config,
            "code_sha256": code_digest(),
            "versions": library_versions(),
        }
        write_json(working / "manifest.json", manifest, sort_keys=True)
    _prune(root, keep, keep_every, keep_step)
    return final


def save_model(model: ModelMixin, folder: Path) -> None:
    """Write a model's folder with the bytes of `save_pretrained`; failed reads of its place are retried.

    Raises `OSError`, `SafetensorError` or `BadInput` if it cannot be written.
    """
    make_folder(folder)
    write_text(folder / model.config_name, model.to_json_string())
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def checkpoint_folders(root: Path) -> list[Path]:
    """Return all checkpoint folders in `root`, complete or not, the newest first.

    Raises `BadInput` if the folder is there and cannot be listed.
    """
    return sorted(_listed(root, NAME), key=checkpoint_step, reverse=True)


def checkpoint_step(folder: Path) -> int:
    """Return the number of finished steps in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def newest_complete(folders: Iterable[Path], damaged: Callable[[Path, str], None]) -> Path | None:
    """Return the first complete one of checkpoint folders, or None.

    `damaged` is called with every one before it and the reason: it warns, notes or raises. Raises `BadInput`
    if one cannot be read, which is no damage.
    """
    for folder in folders:
        if (problem := checkpoint_problem(folder)) is None:
            return folder
        damaged(folder, problem)
    return None


def latest_checkpoint(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None where there was none; remove what a kill left half-done.

    Damaged ones before it are renamed to `damaged-...`, each reported to `warn` in one sentence. Raises
    `BadInput`, and renames nothing, if none is complete, if one cannot be read, or for one that another
    version of MedSora wrote in a form unknown here: a run that had a checkpoint never begins anew by itself.
    """
    for unfinished in _listed(root, UNFINISHED):
        shutil.rmtree(unfinished)
    damaged: dict[Path, str] = {}

    def note(folder: Path, problem: str) -> None:
        if (version := checkpoint_format(folder)) not in (None, CHECKPOINT_FORMAT):
            raise BadInput(
                f"{folder} was written by another version of MedSora (checkpoint format {version}, this one "
                f"reads {CHECKPOINT_FORMAT}); resume with that version, or take another run.name."
            )
        damaged[folder] = problem

    newest = newest_complete(checkpoint_folders(root), note)
    if newest is None:
        lost = [f"{folder.name}: {problem}" for folder, problem in damaged.items()]
        if lost := lost or [f"{folder.name} was set aside" for folder in _listed(root, SET_ASIDE)]:
            raise BadInput(
                f"{root} holds no complete checkpoint any more ({'; '.join(lost)}), and a run does not begin "
                "anew by itself: put a copy of one back, or take another run.name."
            )
        return None
    for folder, problem in damaged.items():
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        warn(f"the checkpoint {folder} is damaged ({problem}); it is set aside as {aside.name}.")
    return Checkpoint(newest, json.loads(read_patiently(Path.read_bytes, newest / "state.json")))


def _listed(root: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        return [root / entry for entry in read_patiently(os.listdir, root) if name.fullmatch(entry)]
    except OSError:
        return []


def _require_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(nearest_folder(root)).free
    if free < needed * SPARE:
        raise BadInput(
            f"{root} has {free / 2**20:.0f} MiB free but a checkpoint needs {needed / 2**20:.0f} MiB; "
            "make room and run the same command again; it resumes from the last checkpoint."
        )


def _prune(root: Path, keep: int, keep_every: int | None, keep_step: int | None) -> None:
    for folder in checkpoint_folders(root)[keep:]:
        step = checkpoint_step(folder)
        if step != keep_step and (not keep_every or step % keep_every):
            try:
                # Renamed first: a kill never leaves half a checkpoint under its name.
                shutil.rmtree(folder.rename(folder.with_name(f".dropping-{folder.name}")))
            except OSError as error:
                log.warning("the old checkpoint %s cannot be removed: %s", folder, error)
