"""The models on the page: every checkpoint of the named runs, saved pipelines, hub names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch

from medsora.errors import BadInput
from medsora.sampling.conditions import givable
from medsora.sampling.run import pipeline_class
from medsora.saved.checkpoint import checkpoint_folders, checkpoint_step
from medsora.saved.classes import VAES, class_of_part
from medsora.saved.find import UNKNOWN_RATE, ModelFolder, find_in_run, find_pipeline, stage_2_folder
from medsora.saved.limits import check_part
from medsora.saved.pipeline import SavedPipeline

log = logging.getLogger(__name__)

KEPT = 2  # models in memory: two are compared side by side


class Models:
    """The models by their names on the page, loaded when first used.

    Raises `BadInput` with one sentence if a name leads nowhere.
    """

    def __init__(self, models: Sequence[str], device: str) -> None:
        self.device = torch.device(device)
        self._find: dict[str, Callable[[], ModelFolder]] = {}
        for model in models:
            for name, find in _choices(model).items():
                again = sum(known == name or known.startswith(f"{name} (") for known in self._find)
                self._find[f"{name} ({again + 1})" if again else name] = find
        self.pipeline = lru_cache(KEPT)(self._load)
        self._folder = lru_cache(None)(self._found)

    @property
    def names(self) -> list[str]:
        """Names to choose from; the first is the default."""
        return list(self._find)

    def conditions(self, name: str | None) -> tuple[list[str], bool]:
        """Return a model's labels, and whether its clips can begin with a given picture."""
        folder = self._folder(name)
        geometry, takes_picture = folder.geometry, False
        if 1 in geometry.get("given_frames", []):
            vae = class_of_part(VAES, check_part(folder.vae), folder.vae)
            takes_picture = givable(1, geometry["frames"], vae.frames_per_chunk)
        return list(geometry.get("labels", [])), takes_picture

    def kind(self, name: str | None) -> str:
        """Return the class of a model's pipeline (`ModelFolder.kind`), which decides how it samples."""
        return self._folder(name).kind

    def _found(self, name: str | None) -> ModelFolder:
        if name not in self._find:
            raise BadInput("choose one of the models in the list.")
        return self._find[name]()

    def _load(self, name: str | None) -> SavedPipeline:
        folder = self._folder(name)
        pipeline = pipeline_class(folder.kind).from_folder(folder).to(self.device)
        if pipeline.config.rate is None:
            log.warning(UNKNOWN_RATE + ".", name, pipeline.config.fps)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _choices(model: str) -> dict[str, Callable[[], ModelFolder]]:
    folder = Path(model)
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        pipeline = find_pipeline(model)  # the name that visitors see contains no path
        name = "/".join(folder.parts[-2:]) if folder.is_absolute() else model.rstrip("/")
        return {name: lambda: pipeline}
    run = stage_2_folder(folder)
    checkpoints = checkpoint_folders(run / "checkpoints")
    if not checkpoints:
        find_in_run(run)  # raises
    title = f"{run.parent.name}/{run.name}"
    return {
        f"{title}, step {checkpoint_step(folder):,}": partial(find_in_run, run, checkpoint=folder.name)
        for folder in checkpoints
    }
