"""What a run that can be sampled from keeps beside its checkpoints: pipeline.json, the decoder, samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsora.config.schema import GeneratorTrainingConfig
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import contact_sheet
from medsora.errors import BadInput, Interrupted, NonFiniteVideo
from medsora.runtime.files import is_file, read_patiently, write_text, written_folder
from medsora.runtime.interruption import StopRequest
from medsora.sampling.synthetic import synthetic_tags
from medsora.saved.find import DEFAULT_FPS
from medsora.saved.manifest import model_files, write_manifest
from medsora.saved.pipeline import SavedPipeline
from medsora.training.loop_end import PeriodicTask
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import keep_sheet

log = logging.getLogger(__name__)


def describe_model(
    run: RunFolder, name: str, decoder: Any, geometry: Mapping[str, Any], rate: float | None
) -> None:
    """Write what sampling needs of a run besides a checkpoint: the frozen `decoder` and pipeline.json.

    The decoder becomes the folder `name`. `rate` is the clips' frame rate, if it is known.
    """
    if rate is None:
        run.notify(
            "the frame rate of the clips is not known (folders of pictures have none): samples are "
            f"written at {DEFAULT_FPS} frames per second."
        )
    if not run.main:
        return
    with written_folder(run.path / name) as folder:
        decoder.save_pretrained(folder)
    described = run.path / "pipeline.json"
    text = json.dumps(geometry, indent=1, sort_keys=True)
    if not is_file(described) or read_patiently(Path.read_bytes, described) != text.encode():
        with run.writing():
            write_text(described, text)
    with run.writing():
        write_manifest(run.path, [described, *model_files(run.path / name)])


def require_same_labels(run: RunFolder, names: list[str] | None, ours: Sequence[str]) -> None:
    """Raise `BadInput` unless a checkpoint's labels are those of the clips.

    Checkpoints of earlier versions hold no names: theirs are in pipeline.json (`trained_labels`).
    """
    if names is not None and names != list(ours):
        raise BadInput(
            f"{run.path} was trained with the labels {', '.join(names) or 'none'}, but the clips "
            f"now have {', '.join(ours) or 'none'}; restore the old names, or take another run.name."
        )


def sheet_path(run: RunFolder, step: int) -> Path:
    """Where the contact sheet of the samples of `step` goes, which is written last."""
    return run.samples / f"step-{step:07d}.png"


def evaluation_and_samples(
    run: RunFolder,
    settings: GeneratorTrainingConfig,
    evaluate: Callable[[int], None],
    sample: Callable[[int, StopRequest], None],
) -> list[PeriodicTask]:
    """Return both tasks of a stage; its samples take long enough to be cut short by a request to stop."""

    def is_evaluated(step: int) -> bool:
        return run.has_logged(step, "held_out/")

    def is_sampled(step: int) -> bool:
        return is_file(sheet_path(run, step))

    return [
        PeriodicTask(settings.eval_every, lambda step, stop: evaluate(step), is_evaluated),
        PeriodicTask(settings.sample_every, sample, is_sampled, interruptible=True),
    ]


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

    def leave_if_asked(*_: Any) -> None:
        if stop.wanted():
            raise Interrupted

    options |= {"seeds": list(range(count)), "label": labels, "output_type": "uint8"}
    try:
        videos = pipeline(callback=leave_if_asked, **options).frames
    except NonFiniteVideo as error:
        log.warning("no samples after step %d: %s", step, error)
        return
    fps = pipeline.config.fps
    tags = synthetic_tags(f"{run.path.name}, step {step}", pipeline.trained_on)
    of_rows = [f", {label}" for label in labels] if labels else [""] * len(videos)
    rows = [(f"seed {k}{of_rows[k]}", video) for k, video in enumerate(videos)]
    with run.writing():
        for number, video in enumerate(videos):
            path = sheet_path(run, step).with_suffix("") / f"video-{number:05d}.mp4"
            write_video(path, video, fps, metadata=tags)
    keep_sheet(run, sheet_path(run, step), contact_sheet(rows, columns=8), step)
