"""Parts of a stage's checkpoints, named once: the same table saves and restores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medsora.config.load import config_to_dict
from medsora.config.schema import Config, TrainingConfig
from medsora.errors import BadInput
from medsora.runtime.files import read_patiently
from medsora.saved.checkpoint import Checkpoint, save_checkpoint
from medsora.saved.optimizer import moments, optimizer_tensors, restore_optimizer
from medsora.training.accelerator import restore_scaler, scaler_state
from medsora.training.run.early_stop import EarlyStop
from medsora.training.run.folder import RunFolder
from medsora.training.schedule import Schedule


class ModelPart(NamedTuple):
    """A folder of the checkpoint: `write` fills it, `load` reads it again."""

    write: Callable[[Path], None]
    load: Callable[[Path], None]


class ValuePart(NamedTuple):
    """A JSON value of the checkpoint's state: what it is after so many steps, and what restores it.

    One of another type than `kind` is refused; without a kind a missing one is restored as None.
    """

    value: Callable[[int], Any]
    restore: Callable[[Any], None]
    kind: type | None = None


@dataclass(frozen=True)
class StageParts:
    """A stage's optimiser, whose parameters are called `names`, its models and its other values, by name."""

    run: RunFolder
    config: Config
    settings: TrainingConfig
    optimizer: torch.optim.Optimizer
    names: list[str]
    models: dict[str, ModelPart]
    values: dict[str, ValuePart]
    model_bytes: int
    early_stop: EarlyStop | None = None

    @property
    def size_bytes(self) -> int:
        """Approximate size of a checkpoint: the models and the optimiser's moments of trained parameters."""
        groups, copies = self.optimizer.param_groups, moments(self.settings.optimizer)
        return self.model_bytes + copies * sum(p.nbytes for group in groups for p in group["params"])

    def save(self, step: int) -> None:
        """Write the checkpoint of `step` finished steps (main process; the others wait)."""
        accelerator = self.run.accelerator
        if self.run.main:
            state = {name: part.value(step) for name, part in self.values.items()}
            best = self.early_stop.best() if self.early_stop else None
            save_checkpoint(
                self.run.checkpoints,
                step,
                self._write_models,
                optimizer_tensors(self.optimizer, self.names),
                {
                    "processes": accelerator.num_processes,
                    "scaler": scaler_state(accelerator),
                    "optimizer": self.settings.optimizer,
                    **state,
                },
                keep=self.settings.keep,
                keep_every=self.settings.keep_every,
                keep_step=best[0] if best else None,
                config=config_to_dict(self.config),
                model_bytes=self.model_bytes,
            )
            self.run.note_saved()
        accelerator.wait_for_everyone()

    def resume(self, schedule: Schedule) -> int:
        """Restore the newest complete checkpoint, if there is one; return the number of finished steps.

        Reports how the learning rate changes if it decays to another end than before.

        Raises `BadInput` or `OSError` if the checkpoint does not fit this stage.
        """
        checkpoint = self.run.newest_checkpoint()
        if checkpoint is None:
            return 0
        self._restore(checkpoint)
        self.run.announce(checkpoint, schedule.total_steps)
        if self.run.previous is not None:
            before = Schedule.of(getattr(self.run.previous, self.run.stage), schedule.clips)
            if note := schedule.moved_decay(before, checkpoint.step):
                self.run.notify(note)
        return checkpoint.step

    def _restore(self, checkpoint: Checkpoint) -> None:
        ours, theirs = self.settings.optimizer, checkpoint.state.get("optimizer")
        if theirs not in (None, ours):  # None: written before there was a choice
            raise BadInput(
                f"{checkpoint.folder} holds the state of the optimiser {theirs}, but "
                f"{self.run.stage}.optimizer is {ours}; put {theirs} back, or take another run.name."
            )
        for name, part in self.values.items():
            part.restore(checkpoint.value(name, part.kind) if part.kind else checkpoint.state.get(name))
        for name, part in self.models.items():
            read_patiently(part.load, checkpoint.folder / name)
        restore_optimizer(self.optimizer, self.names, checkpoint.folder / "optimizer.safetensors")
        restore_scaler(self.run.accelerator, checkpoint.state.get("scaler"))

    def _write_models(self, folder: Path) -> None:
        for name, part in self.models.items():
            part.write(folder / name)
