"""Conditions of a sampled video, its label and first frames, checked against the model's training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsora.config.crop import Crop
from medsora.data.checking.scan import scan_source
from medsora.data.reading.find import Source, find_sources
from medsora.data.reading.frame_folder import IMAGE_SUFFIXES
from medsora.data.reading.margins import crop as cut_off
from medsora.data.reading.picture_names import Recording
from medsora.data.reading.resize import resize_and_crop
from medsora.data.reading.video_io import read_last_frames
from medsora.errors import BadInput
from medsora.sampling.synthetic import read_trained_on

log = logging.getLogger(__name__)

SAME_RATE = 0.02  # maximum relative difference between a continued video's frame rate and the model's


def label_numbers(label: str | Sequence[str] | None, names: Sequence[str], videos: int) -> list[int] | None:
    """Return the number of each video's label; `label` is one for all, or one per video.

    Raises `BadInput`, naming the labels that there are, for an unknown one.
    """
    if label is None:
        return None
    if not names:
        raise BadInput(f"this model was trained without labels; leave the label {label!r} out.")
    given = [label] * videos if isinstance(label, str) else list(label)
    for one in given:
        if one not in names:
            raise BadInput(f"there is no label {one!r}; this model has {', '.join(names)}.")
    if len(given) != videos:
        raise BadInput(f"{len(given)} labels do not fit {videos} videos; give one for all, or one per video.")
    return [list(names).index(one) for one in given]


def check_guidance(guidance: float, label: object) -> None:
    """Raise `BadInput` unless `guidance` is a number from 0 on, and 1 where there is no label to follow."""
    if not 0 <= guidance < 1000:
        raise BadInput(f"the guidance scale must lie between 0 and 1000, not {guidance}.")
    if guidance != 1 and label is None:
        raise BadInput(f"the guidance scale is {guidance}, but no label is given that it could strengthen.")


def check_first_frames(
    first_frames: np.ndarray | None,
    trained: Sequence[int],
    frames: int,
    size: Sequence[int],
    videos: int,
    chunk: int,
) -> np.ndarray | None:
    """Return first frames as uint8 (1 or N, g, H, W, 3), fitted to `size` if they have another.

    Args:
        first_frames: uint8 (g, h, w, 3) for all videos, or (N, g, h, w, 3).
        trained: how many frames the model was trained to be given.
        frames: F of the clip that begins with them.
        chunk: frames that the VAE encodes together.

    Raises `BadInput` with one sentence if this model or clip cannot begin with them.
    """
    if first_frames is None:
        return None
    given = np.asarray(first_frames)
    given = given[None] if given.ndim == 4 else given
    if given.ndim != 5 or given.shape[-1] != 3 or given.dtype != np.uint8 or len(given) not in (1, videos):
        raise BadInput(
            f"first frames must be uint8 (g, H, W, 3), or so for each of {videos} videos, not "
            f"{given.dtype} {np.shape(first_frames)}."
        )
    count = given.shape[1]
    if count not in trained:
        raise BadInput(f"{count} first frames are given, but {trained_to_begin_with(trained)}.")
    if not givable(count, frames, chunk):
        raise BadInput(
            f"a clip of {frames} frames cannot begin with {count} given ones, which the VAE encodes by "
            f"themselves; sample {count + chunk} or {count + 2 * chunk} frames."
        )
    height, width = given.shape[2:4]
    if (height, width) == tuple(size):
        return given
    log.warning(
        "the first frame is %dx%d pixels and is fitted to the clip's %dx%d: scaled until it covers them, "
        "cropped in the middle.",
        *(height, width, *size),
    )
    return np.stack([[resize_and_crop(frame, tuple(size)) for frame in clip] for clip in given])


def read_first_frames(
    path: str | Path,
    trained: Sequence[int],
    frames: int,
    chunk: int,
    *,
    rate: float | None = None,
    crop: Crop | None = None,
) -> np.ndarray:
    """Return the first frames for a clip of `frames` from a picture or a video's end: uint8 (g, h, w, 3).

    From a video, a file or a folder of its frames, the last frames are taken: as many as the model was
    trained to begin with (`trained`). Black borders are cut off as in training, with a warning, if the
    model's `crop` is "auto"; its fixed parts are not, which a warning names, for they may be gone already.
    Raises `BadInput` if there is no such file, it does not decode, the model can begin with none of it, or
    several frames do not come at the model's `rate`, as far as both are known.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(
            f"there is no file {path}; give a picture, or a video whose last frames are continued."
        )
    source = _source(path)
    counts = [count for count in trained if givable(count, frames, chunk)]
    try:
        given = read_last_frames(path, max(counts, default=1))
    except (ValueError, OSError) as error:
        raise BadInput(f"the first frame cannot be read: {error}") from error
    usable = [count for count in counts if count <= len(given)]
    if not usable:
        raise BadInput(
            f"{path} gives {len(given)} frame{'s' * (len(given) != 1)} to begin a clip of {frames} with, but "
            f"{trained_to_begin_with(trained)}."
        )
    given = given[-max(usable) :]
    scan = scan_source(source)
    # What MedSora generated plays at any --fps, and its model may have seen no borders: it names both.
    generated = read_trained_on(path)
    fps = generated.get("rate", scan.fps)
    if len(given) > 1 and None not in (rate, fps) and abs(fps / rate - 1) > SAME_RATE:
        raise BadInput(
            f"{path} has {fps:.4g} frames per second, but the model was trained at {rate:.4g}: it would "
            f"continue at another speed; convert it to {rate:.4g} first, or give its last frame as a picture."
        )
    if crop == "auto" and generated.get("crop") != "auto" and any(scan.margins):
        whole, given = given, np.stack([cut_off(frame, scan.margins) for frame in given])
        log.warning(
            "the black borders of %s are cut off, as in training with data.crop: auto: %dx%d of its %dx%d "
            "pixels are left.",
            *(path, *given.shape[1:3], *whole.shape[1:3]),
        )
    elif not (crop is None or isinstance(crop, str) or generated) and any(crop):
        log.warning(
            "%s is used as it is, but the model was trained with data.crop: %s; cut these parts of the frame "
            "(top, bottom, left, right) off first if they are still in it.",
            path,
            list(crop),
        )
    return given


def _source(path: Path) -> Source:
    """Return the video, or the picture, that `path` is; raises `BadInput` if it is a folder of several."""
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        return Source(path.parent, path.name, Recording((path.name,)))
    if not path.is_dir():
        return Source(path, path.name)
    sources = find_sources(path).sources
    if len(sources) == 1 and sources[0].path == path:
        return sources[0]
    held = ", ".join(source.name for source in sources[:3]) or "no pictures"
    raise BadInput(
        f"the folder {path} is not the frames of one video (it holds {held}); give one video or picture."
    )


def trained_to_begin_with(counts: Sequence[int]) -> str:
    """Return the part of an error that names how many first frames a model can be given."""
    if not counts:
        return "this model was not trained to begin with given frames (train_dit.first_frame_prob is 0)"
    return f"this model was trained to begin with {' or '.join(map(str, counts))} (train_dit.given_frames)"


def givable(count: int, frames: int, chunk: int) -> bool:
    """Whether `count` frames, encoded by themselves, can be the beginning of a clip of `frames`."""
    return 0 < count < frames and (frames - count) % chunk == 0


@dataclass(frozen=True)
class FilmPlan:
    """A film of `frames` made in windows, each of which begins with the last `overlap` frames before it."""

    frames: int
    window: int
    overlap: int

    @property
    def windows(self) -> int:
        """Number of windows."""
        return 1 + -(-(self.frames - self.window) // (self.window - self.overlap))


def plan_film(frames: int, window: int | None, trained: Sequence[int], chunk: int) -> FilmPlan:
    """Return how a film of `frames` is made: in one piece unless `window` is shorter.

    The overlap is the longest that the model was trained to begin with (`trained`). Raises `BadInput` if it
    was not trained to begin a window of this length with anything.
    """
    if window is None or window >= frames:
        return FilmPlan(frames, frames, 0)
    overlaps = [count for count in trained if givable(count, window, chunk)]
    if not overlaps:
        raise BadInput(
            f"a film of {frames} frames in windows of {window} begins every window with frames of the one "
            f"before it, but {trained_to_begin_with(trained)}."
        )
    return FilmPlan(frames, window, max(overlaps))
