"""A config's clips: the phantom rendered if no folder is named, the folder checked, both splits opened."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from medsora.config.schema import STAGE_1, Config
from medsora.data.checking.check import CheckReport
from medsora.data.checking.copies import Content
from medsora.data.clips import ClipDataset, ClipSpec, StoredVideo, StoredVideos
from medsora.data.phantom import variant_suffix, write_phantom
from medsora.data.split import HELD_OUT, count_videos
from medsora.errors import BadInput
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import is_file, read_patiently, write_json
from medsora.runtime.progress_bar import progress_bar
from medsora.saved.checkpoint import checkpoint_folders
from medsora.saved.find import trained_labels
from medsora.training.accelerator import check_same_run
from medsora.training.run.folder import RunFolder
from medsora.training.run.trackers import start_trackers
from medsora.training.schedule import Schedule

RENDER_PROCESSES = 2
VIDEO_LIST = "videos.json"  # file in the run folder: every video's side, frames, thumbnails and perhaps label


def clip_spec(config: Config) -> ClipSpec:
    """Return what a clip of stage 1 is: frames alone."""
    data = config.data
    return ClipSpec(
        frames=data.frames,
        extra_frame=False,
        interval=data.interval,
        rate=data.rate,
        size=data.height_width,
        stride=data.clip_stride,
        crop=data.crop,
        flip=data.flip,
        images=0,
        labels=data.labels,
    )


def denoiser_clip_spec(config: Config) -> ClipSpec:
    """Return what a clip of stage 2 is: with a frame more for the flow, joint images, the flow if exact."""
    aligned = config.alignment.weight > 0 and config.alignment.kind == "flow"
    exact = aligned and config.flow.estimator == "exact"
    return replace(clip_spec(config), extra_frame=True, images=config.images.count, with_flow=exact)


def open_clips(
    config: Config, accelerator: Accelerator, spec: ClipSpec, run: Path
) -> tuple[ClipDataset, ClipDataset]:
    """Return the training clips and the held-out ones; what cannot be used is listed once on stderr.

    `run` is the folder of the run that they are for: its labels keep their order and its videos their sides
    when it is resumed. Without anything held out the second dataset is the first.
    Raises `BadInput` if no clip can be used, or the config does not fit the folder.
    """
    show = accelerator.is_main_process
    with accelerator.main_process_first():
        report = spec.check(clip_folder(config, show=show))
        if show:
            for complaint in report.complaints():
                print(complaint, file=sys.stderr)
        clips, held_out = split_clips(config, report, spec, run)
        if show:
            for note in clips.notes():
                print(note, file=sys.stderr)
        return clips, held_out if len(held_out) else clips


def split_clips(
    config: Config, report: CheckReport, spec: ClipSpec, run: Path
) -> tuple[ClipDataset, ClipDataset]:
    """Return the training clips and the held-out ones, of which there may be none; those are never flipped.

    Raises `BadInput` as `ClipDataset` does.
    """
    options = {
        "seed": config.run.seed,
        "holdout": config.data.holdout,
        "split_csv": config.data.split_csv,
        "group": config.data.group,
        "trained_labels": trained_labels(run),
        "stored": stored_videos(run),
    }
    clips = ClipDataset(report, spec, split="train", **options)
    return clips, ClipDataset(report, replace(spec, flip=False), split=HELD_OUT, **options)


def stored_videos(run: Path) -> StoredVideos | None:
    """Return the videos that a run with checkpoints began with; None for a run that has none.

    Raises `BadInput` if their list is damaged.
    """
    if not checkpoint_folders(run / "checkpoints"):
        return None
    path = run / VIDEO_LIST
    if not is_file(path):
        return StoredVideos(None)
    try:
        stored = unsealed(json.loads(read_patiently(Path.read_bytes, path)))
        videos = {
            name: StoredVideo(side, Content(frames, thumbnails), *label)
            for name, (side, frames, thumbnails, *label) in stored["videos"].items()
        }
        return StoredVideos(videos, stored["by_folder"])
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}, the list of the run's videos, is damaged ({error}); copy it back, or remove it to draw "
            "the split as if it had never been stored."
        ) from error


def folder_changes(run: Path, clips: ClipDataset) -> str | None:
    """Return what has changed in the folder since the run began, in one sentence; None if nothing has.

    Raises `BadInput` as `stored_videos` does.
    """
    before = stored_videos(run)
    if before is None or before.videos is None:
        return None
    changes = before.changes(clips.report, clips.sides.sides, _label_words(clips))
    since = f"the folder has changed since the run began: {'; '.join(changes)}."
    return f"{since} Earlier videos keep their side of the split." if changes else None


def _label_words(clips: ClipDataset) -> dict[str, str]:
    return clips.labels.words(video.source.name for video in clips.report.usable)


def _store_videos(run: RunFolder, clips: ClipDataset) -> None:
    """Write the list of the run's videos, and report what has changed in the folder since it began.

    Videos that are missing now stay in the list. Raises `BadInput` if the run folder cannot be written.
    """
    if not run.main:
        return
    before = stored_videos(run.path)
    sides = clips.sides.sides
    contents = {video.source.name: video.content for video in clips.report.reports}
    labels = _label_words(clips)
    videos = {name: StoredVideo(side, contents[name], labels.get(name)) for name, side in sides.items()}
    by_folder = before is None or (before.by_folder and before.videos is not None)
    if before is not None and before.videos is not None:
        if changes := folder_changes(run.path, clips):
            run.notify(changes)
        videos = {**before.videos, **videos}
    listed = {
        name: [video.side, *video.content[:2], *([] if video.label is None else [video.label])]
        for name, video in videos.items()
    }
    with run.writing():
        stored = sealed({"by_folder": by_folder, "videos": listed})
        write_json(run.path / VIDEO_LIST, stored, sort_keys=True)


def _held_out_of_stage_1(config: Config, clips: ClipDataset) -> str | None:
    """Return in one sentence which held-out videos the VAE was trained on; None if none, or if not known."""
    if config.vae.path is None and config.vae.kind == "per-frame":
        return None  # the published VAE itself
    named = config.vae_dir if config.vae.path is None else Path(config.vae.path)
    places = (named.parent if named.name == "final" else named, named / "vae")
    before = next((videos for place in places if (videos := stored_videos(place))), None)
    if before is None or before.videos is None:
        return None
    held_out = [name for name, side in clips.sides.sides.items() if side == HELD_OUT]
    if not (names := before.trained_on(clips.report, held_out)):
        return None
    return (
        f"the VAE of {named} was trained on {count_videos(names)}, held out here: it reconstructs them "
        "better than new videos; train both stages on the same folder with the same run.seed."
    )


def open_run(
    config: Config, stage: str, accelerator: Accelerator, clips: ClipDataset
) -> tuple[RunFolder, Schedule]:
    """Open the run folder of `stage` with its list of videos and its trackers; return it and the schedule.

    Raises `BadInput` if they cannot be opened, or the processes do not have the same folder and clips.
    """
    settings = getattr(config, stage)
    schedule = Schedule.of(settings, len(clips))
    schedule.check_processes(accelerator.num_processes, settings.accumulation)
    run = RunFolder(config.folder(stage), config, stage, accelerator)
    check_same_run(run, config, clips)
    run.keep([*clips.report.complaints(), *clips.notes()])
    _store_videos(run, clips)
    if stage != STAGE_1 and (leak := _held_out_of_stage_1(config, clips)):
        run.notify(leak)
    start_trackers(accelerator, run, config)  # before the caches are filled: a missing login fails at once
    return run, schedule


def clip_folder(config: Config, *, show: bool = False) -> Path:
    """Return the folder of clips; the phantom is rendered first if the config names no other."""
    if config.data.root is not None:
        return Path(config.data.root)
    phantom, (height, width) = config.phantom, config.data.height_width
    folder = Path(
        f"{phantom.folder}-{phantom.videos}x{phantom.frames}-{height}px-seed{phantom.seed}"
        + variant_suffix(phantom.polyp_size, phantom.look)
    )
    if height != width:
        raise ValueError(f"data.size is {height}x{width}, but the phantom is square; give one number.")
    with progress_bar("rendering the phantom", total=phantom.videos, unit="video", show=show) as bar:
        try:
            write_phantom(
                folder,
                phantom.videos,
                phantom.frames,
                height,
                phantom.seed,
                workers=RENDER_PROCESSES,
                polyp_size=phantom.polyp_size,
                look=phantom.look,
                progress=lambda done, total: bar.update(done - bar.n),
            )
        except OSError as error:
            raise BadInput(
                f"the phantom cannot be rendered into {folder} ({error.strerror or error}); make room, "
                "or set phantom.folder."
            ) from error
    return folder
