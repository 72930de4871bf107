"""Shared parts of the stages that train generative models: pipeline.json, the decoder, samples, labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from medsora.config.schema import Config, GeneratorTrainingConfig
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import contact_sheet
from medsora.errors import BadInput, Interrupted, NonFiniteVideo
from medsora.runtime.files import is_file, read_patiently, write_text, written_folder
from medsora.runtime.interruption import StopRequest
from medsora.sampling.synthetic import synthetic_tags
from medsora.saved.checkpoint import save_model
from medsora.saved.find import DEFAULT_FPS
from medsora.saved.manifest import model_files, write_manifest
from medsora.saved.pipeline import SavedPipeline
from medsora.training.loop_end import PeriodicTask
from medsora.training.run.early_stop import EarlyStop
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import keep_sheet
from medsora.training.schedule import Schedule
from medsora.training.stage_parts import StageParts

log = logging.getLogger(__name__)


class GeneratorStage:
    """A stage that trains a generative model on what a frozen decoder encodes.

    `samples` has the training clips, whose labels its model learns.
    """

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: Dataset
    schedule: Schedule
    parts: StageParts
    decoder: tuple[str, nn.Module]  # the frozen decoder and its folder's name in the run
    decoder_digest: str
    geometry: dict[str, Any]  # clip settings that a pipeline needs
    evaluate: Callable[[int], None]
    sample: Callable[[int, StopRequest], None]
    held_out_loss: ClassVar[str]  # the logged metric that early stopping goes by
    other_decoder: ClassVar[str]  # what a checkpoint with another decoder was trained on

    @property
    def settings(self) -> GeneratorTrainingConfig:
        """The config's section of this training."""
        return getattr(self.config, self.run.stage)

    @property
    def early_stop(self) -> EarlyStop | None:
        """Stops on the loss of held-out clips."""
        return EarlyStop.of(self.run, self.settings, self.held_out_loss)

    @property
    def tasks(self) -> list[PeriodicTask]:
        """Its evaluation and its samples, which take long enough to be cut short by a request to stop."""
        return [
            PeriodicTask(
                self.settings.eval_every,
                lambda step, stop: self.evaluate(step),
                lambda step: self.run.has_logged(step, "held_out/"),
            ),
            PeriodicTask(
                self.settings.sample_every,
                self.sample,
                lambda step: is_file(_sheet_path(self.run, step)),
                interruptible=True,
            ),
        ]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the clips' labels."""
        return self.samples.clips.labels.names

    @property
    def clip_labels(self) -> list[int]:
        """The label's number of every training clip."""
        return [self.samples.clips.label(index) for index in range(len(self.samples.clips))]

    def clip_geometry(self) -> dict[str, Any]:
        """Return the geometry of the clips that pipelines of all kinds save, as in `SavedPipeline`."""
        data, rate = self.config.data, self.samples.clips.report.fps
        known = {"interval": data.interval, "rate": rate, "labels": list(self.labels)}
        return {
            "frames": data.frames,
            "size": list(data.height_width),
            "fps": rate or DEFAULT_FPS,
            "crop": data.crop,
            **{key: value for key, value in known.items() if value},
        }

    def require_same_labels(self, names: list[str] | None) -> None:
        """Raise `BadInput` unless a checkpoint's labels are those of the clips.

        Checkpoints of earlier versions hold no names: theirs are in pipeline.json (`trained_labels`).
        """
        if names is not None and names != list(self.labels):
            raise BadInput(
                f"{self.run.path} was trained with the labels {', '.join(names) or 'none'}, but the clips "
                f"now have {', '.join(self.labels) or 'none'}; restore the old names, or take "
                "another run.name."
            )

    def require_same_decoder(self, digest: str | None) -> None:
        """Raise `BadInput` unless a checkpoint's model was trained on what this decoder encodes."""
        if digest != self.decoder_digest:
            raise BadInput(
                f"{self.run.path} {self.other_decoder} than the one that vae.path or stage 1 gives now; take "
                "another run.name, or put that one back to resume that run."
            )

    def resume(self) -> int:
        """Restore the newest complete checkpoint, if there is one; return the number of finished steps.

        Also writes beside it what sampling needs of this run: the decoder and pipeline.json. Raises
        `BadInput` or `OSError` if the checkpoint is of another model, or of one with another decoder.
        """
        start, run = self.parts.resume(self.schedule), self.run
        if self.samples.clips.report.fps is None:
            run.notify(
                "the frame rate of the clips is not known (folders of pictures have none): samples are "
                f"written at {DEFAULT_FPS} frames per second."
            )
        if not run.main:
            return start
        name, decoder = self.decoder
        with written_folder(run.path / name) as folder:
            save_model(decoder, folder)
        described = run.path / "pipeline.json"
        text = json.dumps(self.geometry, indent=1, sort_keys=True)
        with run.writing():
            if not is_file(described) or read_patiently(Path.read_bytes, described) != text.encode():
                write_text(described, text)
            write_manifest(run.path, [described, *model_files(run.path / name)])
        return start


def _sheet_path(run: RunFolder, step: int) -> Path:
    """Path of the contact sheet of the samples of `step`, which is written last."""
    return run.samples / f"step-{step:07d}.png"


def keep_samples(
    run: RunFolder,
    step: int,
    stop: StopRequest,
    pipeline: SavedPipeline,
    count: int,
    names: Sequence[str],
    **options: Any,
) -> None:
    """Sample `count` videos of seeds 0, 1, ..., one label after another of `names`, into samples/.

    Videos that are not finite are left out with a warning: the training itself may be well. Raises
    `Interrupted` if `stop` wants it. `options` are those of the pipeline's call.
    """
    labels = [names[k % len(names)] for k in range(count)] if names else None

    def leave_if_stopped(*_: Any) -> None:
        if stop.wanted():
            raise Interrupted

    options |= {"seeds": list(range(count)), "label": labels, "output_type": "uint8"}
    try:
        videos = pipeline(callback=leave_if_stopped, **options).frames
    except NonFiniteVideo as error:
        log.warning("no samples after step %d: %s", step, error)
        return
    tags = synthetic_tags(f"{run.path.name}, step {step}", pipeline.trained_on)
    of_rows = [f", {label}" for label in labels] if labels else [""] * len(videos)
    rows = [(f"seed {k}{of_rows[k]}", video) for k, video in enumerate(videos)]
    with run.writing():
        for number, video in enumerate(videos):
            path = _sheet_path(run, step).with_suffix("") / f"video-{number:05d}.mp4"
            write_video(path, video, pipeline.config.fps, metadata=tags)
    keep_sheet(run, _sheet_path(run, step), contact_sheet(rows, columns=8), step)
