"""A config's clips: the phantom rendered if no folder is named, the folder checked, both splits opened."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.checking.check import check_folder
from medsora.data.clips import ClipDataset
from medsora.data.phantom import polyp_suffix, write_phantom
from medsora.data.split import HELD_OUT
from medsora.errors import BadInput, one_line
from medsora.runtime.progress_bar import progress_bar

RENDER_PROCESSES = 2


def open_clips(
    config: Config, accelerator: Accelerator, *, extra_frame: bool, images: int, with_flow: bool = False
) -> tuple[ClipDataset, ClipDataset]:
    """Return the training clips and the held-out ones; what cannot be used is listed once on stderr.

    Without anything held out the second dataset is the first, and that is said. Raises `BadInput` if no clip
    can be used, or the config does not fit the folder.
    """
    with accelerator.main_process_first():
        return _open(config, extra_frame, images, with_flow, accelerator.is_main_process)


def clip_folder(config: Config, *, show: bool = False) -> Path:
    """Return the folder of clips; the phantom is rendered first if the config names no other."""
    if config.data.root is not None:
        return Path(config.data.root)
    phantom, (height, width) = config.phantom, config.data.height_width
    folder = Path(
        f"{phantom.folder}-{phantom.videos}x{phantom.frames}-{height}px-seed{phantom.seed}"
        + polyp_suffix(phantom.polyp_size)
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
                progress=lambda done, total: bar.update(done - bar.n),
            )
        except OSError as error:
            raise BadInput(
                f"the phantom cannot be rendered into {folder} ({error.strerror or error}); make room, "
                "or set phantom.folder."
            ) from error
    return folder


def _open(
    config: Config, extra_frame: bool, images: int, with_flow: bool, show: bool
) -> tuple[ClipDataset, ClipDataset]:
    data = config.data
    root = clip_folder(config, show=show)
    report = check_folder(
        root,
        frames=data.frames + extra_frame,
        interval=data.interval,
        clip_stride=data.clip_stride,
        crop=data.crop,
    )
    if show:
        for complaint in report.complaints():
            print(complaint, file=sys.stderr)
    options = {
        "frames": data.frames,
        "extra_frame": extra_frame,
        "interval": data.interval,
        "size": data.height_width,
        "clip_stride": data.clip_stride,
        "images": images,
        "seed": config.run.seed,
        "holdout": data.holdout,
        "split_csv": data.split_csv,
        "labels": data.labels,
        "with_flow": with_flow,
        "report": report,
    }
    clips = ClipDataset(root, flip=data.flip, split="train", **options)
    held_out = ClipDataset(root, flip=False, split=HELD_OUT, **options)
    names = [video.source.name for video in clips.videos]
    unlabelled = [name for name in names if name not in clips.labels.of_video]
    if show and clips.labels.names and unlabelled:
        print(
            f"{len(unlabelled)} videos have no label in {data.labels} and train without one: "
            f"{one_line(unlabelled[0])} ...",
            file=sys.stderr,
        )
    if len(held_out) == 0:
        if show:
            print("nothing is held out: figures are of training clips (data.holdout).", file=sys.stderr)
        held_out = clips
    return clips, held_out
