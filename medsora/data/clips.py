"""One dataset for every corpus: clips of consecutive frames, with joint images from other videos.

An item is made in two steps. `choose(epoch, index)` draws what the item is: which window, start, flip, which
joint images; it is a pure function of (seed, epoch, index) and reads no file. `load(choice)` decodes exactly
that. A cache of encoded clips makes its own choices and loads them here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medsora.data.checking.check import CheckReport, SourceReport, check_folder, clip_windows
from medsora.data.checking.copies import Content, find_copies
from medsora.data.checking.windows import Window, clip_span
from medsora.data.choice import ClipChoice, ImageSource, draw_images
from medsora.data.exact_flow import check_flow_files, read_flow
from medsora.data.labels import NO_LABELS, read_labels
from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.pixels import frames_to_video
from medsora.data.reading.resize import height_width
from medsora.data.split import HELD_OUT, Split, count_videos, draw_split, split_by_csv, split_by_video
from medsora.errors import BadInput, one_line

log = logging.getLogger(__name__)

SPLITS = ("train", HELD_OUT, "all")
CLIP_TIME_LIMIT_S = 120.0  # a clip that takes longer to decode is treated as broken
REPLACEMENTS = 16  # windows tried, the broken one included, before loading fails
Read = TypeVar("Read")


@dataclass(frozen=True)
class ClipSpec:
    """Specification of a clip and its extras; raises `BadInput` for a number out of its range."""

    frames: int = 16  # F
    extra_frame: bool = True  # one more frame is read, for the optical flow alone
    interval: int | None = 3  # so many source frames from one to the next; None with `rate`
    size: int | tuple[int, int] = 128  # pixels, or (H, W), covered by scaling, then cropped in the middle
    stride: int | None = None  # source frames between enumerated windows (default: one clip's span)
    crop: str | Sequence[float] = "none"  # cut off first: "none", "auto" (black borders), or parts of a side
    flip: bool = True  # mirror half of the items left to right, joint images and flow included
    images: int = 8  # K, the number of joint images
    labels: str = NO_LABELS  # what each video's label is read from: "none", "folders" or a CSV
    with_flow: bool = False  # also give the exact flow from `NAME.flow.safetensors` beside each video
    rate: float | None = None  # frames per second, by time: at every instant the nearest source frame

    def __post_init__(self) -> None:
        if (self.interval is None) == (self.rate is None):
            raise BadInput(
                f"clips are taken by their interval or their rate, but the interval is {self.interval} and "
                f"the rate {self.rate}; set one of them."
            )
        if self.rate is not None and not self.rate > 0:
            raise BadInput(f"the rate is {self.rate} but must be greater than 0 frames per second.")
        stride = 1 if self.stride is None else self.stride
        interval = 1 if self.interval is None else self.interval
        if min(self.frames, interval, stride) < 1 or self.images < 0:
            raise BadInput(
                f"frames {self.frames}, interval {self.interval} and clip_stride {self.stride} must be at "
                f"least 1, images {self.images} at least 0."
            )
        object.__setattr__(self, "size", height_width(self.size))

    @property
    def clip_frames(self) -> int:
        """Number of frames to read: F or F+1."""
        return self.frames + self.extra_frame

    def check(self, root: str | Path, cache_path: str | Path | None = None) -> CheckReport:
        """Check a folder, or one video file, for such clips; raises as `check_folder`."""
        return check_folder(
            root,
            frames=self.clip_frames,
            interval=self.interval,
            rate=self.rate,
            clip_stride=self.stride,
            crop=self.crop,
            cache_path=cache_path,
        )


@dataclass(frozen=True)
class StoredVideo:
    """A video of a run: its side of the split, what identifies it, its label.

    The label is empty for none, None where it is not known: in runs without labels, or of earlier versions.
    """

    side: str
    content: Content
    label: str | None = None


@dataclass(frozen=True)
class StoredVideos:
    """The videos that a run began with, by name.

    Attributes:
        videos: None for a run of an earlier version, which stored none: it keeps the split that such
            versions drew, regardless of folders' names and of copies.
        by_folder: whether folders named train, val and test had a meaning when the run began.
    """

    videos: Mapping[str, StoredVideo] | None
    by_folder: bool = True

    def copies(self, report: CheckReport) -> list[tuple[str, ...]]:
        """Return the groups of copies of `report`, with videos of before that are missing or have changed."""
        present = {video.source.name: video.content for video in report.reports}
        before = [
            (name, video.content)
            for name, video in self.videos.items()
            if name not in present or not self._has(name, present[name])
        ]
        return find_copies([*before, *present.items()])

    def _has(self, name: str, content: Content) -> bool:
        """Return whether the run began with this video; a decoder may round differently since."""
        if name not in self.videos:
            return False
        before, now = self.videos[name].content, content._replace(inside="")  # the list has whole frames
        return before == now or bool(find_copies([("before", before), ("now", now)]))

    def trained_on(self, report: CheckReport, names: Iterable[str]) -> list[str]:
        """Return those of `names` that the run was trained on, with the same frames."""
        present = {video.source.name: video.content for video in report.reports}
        return [n for n in names if self._has(n, present[n]) and self.videos[n].side != HELD_OUT]

    def _label(self, name: str) -> str | None:
        return self.videos[name].label if name in self.videos else None

    def sides(self, report: CheckReport) -> dict[str, str]:
        """Return the sides by name; recordings of a folder that used to be one video keep its side."""
        sides = {name: video.side for name, video in self.videos.items()}
        folders = {video.source.name: video.source.whole_name for video in report.reports}
        return {name: sides[folder] for name, folder in folders.items() if folder in sides} | sides

    def changes(self, report: CheckReport, sides: Mapping[str, str], labels: Mapping[str, str]) -> list[str]:
        """Return what has changed in the folder since the run began, one clause each."""
        present = {video.source.name: video.content for video in report.reports}
        clauses = {
            "missing": [name for name in self.videos if name not in present],
            "with other frames": [n for n, c in present.items() if n in self.videos and not self._has(n, c)],
            "with other labels": [
                name for name, label in labels.items() if self._label(name) not in (None, label)
            ],
            "new and trained on": [n for n, s in sides.items() if n not in self.videos and s != HELD_OUT],
            "new and held out": [n for n, s in sides.items() if n not in self.videos and s == HELD_OUT],
        }
        return [f"{count_videos(names)} {what}" for what, names in clauses.items() if names]


class ClipDataset(Dataset):
    """Clips of a folder, one per enumerated window and epoch.

    Args:
        report: the folder's check (`ClipSpec.check`).
        spec: what a clip is.
        split: "train", "held-out" (may be empty) or "all".
        seed: decides starts, flips, images and the split.
        holdout: part of the videos that is held out; `split_csv`, or folders named train, val and test,
            decide instead; `group` finds each patient's videos (see `draw_split`).
        stored: the videos of the run that is resumed; they keep their sides.
        trained_labels: the labels of the run that is resumed, in its order (see `labels.py`).

    Raises `BadInput` with one sentence if nothing usable is found or the options do not fit the folder.
    """

    def __init__(
        self,
        report: CheckReport,
        spec: ClipSpec,
        *,
        split: str = "train",
        seed: int = 0,
        holdout: float = 0.1,
        split_csv: str | Path | None = None,
        group: str | None = None,
        stored: StoredVideos | None = None,
        trained_labels: Sequence[str] = (),
    ) -> None:
        if split not in SPLITS:
            raise BadInput(f"the split '{split}' must be one of {', '.join(SPLITS)}.")
        if (report.frames, report.interval, report.rate) != (spec.clip_frames, spec.interval, spec.rate):
            raise ValueError(
                f"the check given is of {report.frames} frames {report.pace}, the clips have "
                f"{spec.clip_frames} at interval {spec.interval} or rate {spec.rate}."
            )
        report.require_clips()
        self.report, self.spec, self.seed = report, spec, seed
        self.labels = read_labels(
            spec.labels,
            report.root,
            [video.source.name for video in report.usable],
            known=[video.source.name for video in report.bad],
            trained=trained_labels,
        )
        if stored is not None and stored.videos is None:
            self.sides = self._split_as_before(holdout, split_csv)
        else:
            names = self._names_for_both_stages()
            self.sides = draw_split(
                names,
                holdout,
                seed,
                split_csv=split_csv,
                group=group,
                copies=report.copies if stored is None else stored.copies(report),
                kept={} if stored is None else stored.sides(report),
                known=[video.source.name for video in report.reports],
                by_folder=stored is None or stored.by_folder,
                stills={still.source.name for still in report.stills},
            )
        wanted = ("train", HELD_OUT) if split == "all" else (split,)
        self.videos: list[SourceReport] = [
            video for video in report.usable if self.sides.sides.get(video.source.name) in wanted
        ]
        self.windows: list[tuple[int, Window]] = [
            (number, window) for number, video in enumerate(self.videos) for window in video.windows
        ]
        if not self.windows and split != HELD_OUT:
            notes = "".join(f" ({note})" for note in self.sides.notes)
            raise BadInput(
                f"{report.root} has no clip left for the split '{split}'{notes}; hold out less, or add "
                "videos."
            )
        if spec.with_flow:
            check_flow_files(self.videos, interval=spec.interval, size=spec.size)
        stills = [r for r in report.stills if spec.images and self.sides.sides.get(r.source.name) in wanted]
        self.sources = [*self.videos, *stills]  # that joint images are drawn from
        self._scans = [source.scan for source in self.sources]
        if spec.images and len(self.sources) == 1:
            log.warning(
                "%s has only one video on the side '%s' to take joint images from (%d usable videos on the "
                "other side are not counted): its other times are used.",
                report.root,
                split,
                len(report.usable) - 1,
            )
        self._reported: set[str] = set()

    def _names_for_both_stages(self) -> list[str]:
        """Return the videos that one stage or the other can use: both draw the same split of them."""
        spec = self.spec
        return [
            video.source.name
            for video in self.report.reports
            if video.windows
            or (video.scan.stills and not video.scan.problem)
            or clip_windows(video.scan, spec.frames, spec.interval, spec.rate)
        ]

    def notes(self) -> list[str]:
        """Return notes on the split and the labels, one line each."""
        notes = [*self.sides.notes, *self.labels.notes]
        unlabelled = [v.source.name for v in self.videos if v.source.name not in self.labels.of_video]
        if self.labels.names and unlabelled:
            notes.append(f"no label in {self.spec.labels}: {count_videos(unlabelled)} trained on without one")
        if all(self.sides.sides.get(video.source.name) != HELD_OUT for video in self.report.usable):
            notes.append("nothing is held out (data.holdout): validation uses training clips.")
        return [one_line(note) for note in notes]

    def _split_as_before(self, holdout: float, split_csv: str | Path | None) -> Split:
        whole = {video.source.name: video.source.whole_name for video in self.report.usable}
        names = list(dict.fromkeys(whole.values()))
        if split_csv is None:
            sides = split_by_video(names, holdout, self.seed)
        else:
            bad = [video.source.name for video in self.report.bad]
            sides = split_by_csv(split_csv, names, holdout, self.seed, known=bad)
        return Split({name: sides[folder] for name, folder in whole.items() if folder in sides})

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return the item of `key`, (epoch, index) or an index of epoch 0; see `load` for what it holds.

        A span that does not decode is replaced by the next window, deterministically; `index` tells which.
        Raises `BadInput` after `REPLACEMENTS` of them.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self._load_or_next(index, lambda other: self.choose(epoch, other))

    def label(self, index: int) -> int:
        """Return the label's number of window `index`; `len(self.labels.names)` if its video has none."""
        return self.labels.number(self.videos[self.windows[index][0]].source.name)

    def name(self, choice: ClipChoice) -> str:
        """Return what reports call the clip: "folder/file.mp4@START"."""
        return one_line(f"{self.videos[choice.video].source.name}@{choice.start}")

    def choose(
        self,
        epoch: int,
        index: int,
        *,
        start: int | None = None,
        flip: bool | None = None,
        images: Sequence[ImageSource] | None = None,
    ) -> ClipChoice:
        """Return what item (epoch, index) is; `start`, `flip` and `images` overrule what would be drawn."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        random = np.random.default_rng((self.seed, epoch, index))
        video, window = self.windows[index]
        drawn_start = int(random.integers(window.start, window.latest + 1))
        drawn_flip = bool(random.integers(2)) and self.spec.flip
        start = drawn_start if start is None else start
        if images is None:
            numbers = self.videos[video].numbers(start)
            span = clip_span(self.spec.clip_frames, self.spec.interval or 1)
            clip = (start, start + span if numbers is None else numbers[-1] + 1)
            images = draw_images(random, self.spec.images, self._scans, video, clip)
        return ClipChoice(index, video, start, drawn_flip if flip is None else flip, tuple(images))

    def fixed_choice(
        self, index: int, *, flip: bool = False, images: Sequence[ImageSource] | None = None
    ) -> ClipChoice:
        """Return the choice that never changes: the window's first frame, the joint images of epoch 0."""
        return self.choose(0, index, start=self.windows[index][1].start, flip=flip, images=images)

    def fixed_clip(
        self,
        index: int,
        *,
        flip: bool = False,
        images: Sequence[ImageSource] | None = None,
        kept: bool = False,
    ) -> dict[str, Any]:
        """Return the item of `fixed_choice(index)`: the same clip in every evaluation and in every cache.

        Replaced as in `__getitem__` if it turns out not to decode. One that is `kept` in a cache is replaced
        by one of the same label alone; a failed read, which says nothing of the clip, raises `BadInput`.
        """
        return self._load_or_next(
            index, lambda other: self.fixed_choice(other, flip=flip, images=images), kept=kept
        )

    def image_group(self, count: int, random: np.random.Generator) -> tuple[Tensor, list[int]]:
        """Draw `count` joint images from a finite set, the windows' first frames, for a cache.

        Returns them, float32 (count, 3, H, W), and the numbers of the videos that they are from. One that
        turns out not to decode is drawn again. Raises `BadInput` if none does, or if one cannot be read now.
        """
        drawn = random.integers(len(self), size=count).tolist()
        images, videos = zip(*(self._image_or_another(window, random) for window in drawn), strict=True)
        return torch.cat(images), list(videos)

    def _image_or_another(self, index: int, random: np.random.Generator) -> tuple[Tensor, int]:
        others = (int(random.integers(len(self))) for _ in range(REPLACEMENTS - 1))
        return self._first_readable(
            (self.fixed_choice(window, images=()) for window in chain([index], others)),
            lambda choice: (self._read(choice.video, choice.start, 1), choice.video),
            "the joint image %s is drawn again: %s",
            kept=True,
        )

    def load(self, choice: ClipChoice) -> dict[str, Any]:
        """Decode `choice`. Raises `UnreadableVideo` if that is not possible.

        Returns `video` (F+1 or F, 3, H, W) and `images` (K, 3, H, W), float32 in [-1, 1]; with `with_flow`
        also `flow` (F, 2, H, W), float32, pixels (right, down); `name` "file.mp4@12", `index` of the window,
        `flipped`.
        """
        item = {
            "video": self._read(choice.video, choice.start, self.spec.clip_frames),
            "images": self.load_images(choice.images),
            "name": self.name(choice),
            "index": choice.index,
            "flipped": choice.flipped,
        }
        if self.spec.with_flow:
            item["flow"] = read_flow(
                self.videos[choice.video].source.path, choice.start, self.spec.clip_frames - 1
            )
        return _flip_item(item) if choice.flipped else item

    def load_images(self, images: Sequence[ImageSource]) -> Tensor:
        """Decode joint images, unflipped: float32 (K, 3, H, W) in [-1, 1]."""
        if not images:
            return torch.empty(0, 3, *self.spec.size)
        return torch.cat([self._read(video, frame, 1) for video, frame in images])

    def _read(self, video: int, start: int, count: int) -> Tensor:
        clip = start, count, self.spec.interval, self.spec.size
        return frames_to_video(self.sources[video].read(*clip, time_limit=CLIP_TIME_LIMIT_S))

    def _load_or_next(
        self, index: int, choose: Callable[[int], ClipChoice], *, kept: bool = False
    ) -> dict[str, Any]:
        following = (other % len(self) for other in range(index + 1, index + len(self)))
        if kept:  # under the name of `index`, whose label counts
            following = (other for other in following if self.label(other) == self.label(index))
        choices = map(choose, islice(chain([index], following), REPLACEMENTS))
        warning = "the clip %s is replaced by the next: %s"
        return self._first_readable(choices, self.load, warning, kept=kept)

    def _first_readable(
        self,
        choices: Iterable[ClipChoice],
        read: Callable[[ClipChoice], Read],
        warning: str,
        *,
        kept: bool,
    ) -> Read:
        """Return `read(choice)` of the first choice that decodes; an error that repeats is logged once."""
        tried, reason = 0, ""
        for choice in choices:
            tried += 1
            try:
                return read(choice)
            except (UnreadableVideo, OSError) as error:
                reason = str(error)
                if kept and getattr(error, "read_failed", True):
                    raise BadInput(
                        f"{one_line(reason).rstrip('.')}; no other clip takes its place in the cache: run "
                        "the same command again once it can be read."
                    ) from error
                if reason not in self._reported:
                    self._reported.add(reason)
                    log.warning(warning, self.name(choice), reason)
        raise BadInput(
            f"the clips cannot be read any more (tried: {tried}; the last: {one_line(reason).rstrip('.')}); "
            "check the folder of the videos, then run the same command again: saved checkpoints are intact."
        )


def _flip_item(item: dict[str, Any]) -> dict[str, Any]:
    """Mirror an item's video, images and flow left to right; the flow's horizontal part changes its sign."""
    mirrored = {key: item[key].flip(-1) for key in ("video", "images", "flow") if key in item}
    if "flow" in mirrored:
        mirrored["flow"] = mirrored["flow"] * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    return item | mirrored
