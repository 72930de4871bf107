"""Check of a folder: its usable sources, their numbers of clips, and why others cannot be used."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from medsora.data.checking.burnt_in import marks_inside, position_words
from medsora.data.checking.cache import CheckCache, default_cache_path
from medsora.data.checking.copies import Content, find_copies
from medsora.data.checking.scan import Scan, scan_source
from medsora.data.checking.timing import uneven_words
from medsora.data.checking.windows import NoClips, TimedClips, Window, clip_span, timed_clips, windows_of
from medsora.data.reading.find import Source, find_sources
from medsora.data.reading.margins import NO_MARGINS, Margins
from medsora.data.reading.picture_names import LeftOut
from medsora.data.reading.video_io import read_frames
from medsora.data.split import HELD_OUT, count_videos, folder_note, sides_by_folder
from medsora.errors import BadInput, one_line

MAX_GROUPS_NAMED, MAX_COPIES_NAMED = 5, 4  # groups of copies, and copies per group, in one line
DEFAULT_THREADS = min(4, os.cpu_count() or 1)  # at most one per core
MAX_SMALL_FILE_BYTES = 2**18  # a single thread scans files below this size
RATES_ALIKE = 1.5  # the highest frame rate over the lowest; larger ratios are reported
MARKS = "possible burnt-in text or logo"
SAVE_EVERY_S = 30.0  # an interrupted check of a large folder resumes here


@dataclass(frozen=True)
class SourceReport:
    """One source, what its scan found, and what that means for clips of the requested length."""

    source: Source
    scan: Scan
    windows: tuple[Window, ...]
    span: int
    margins: Margins = NO_MARGINS  # cropped from every frame
    timed: TimedClips | None = None  # which frames a clip takes by data.rate; None by data.interval
    no_clips: str | None = None  # why data.rate gives none

    def numbers(self, start: int, count: int | None = None) -> list[int] | None:
        """Return the frames of the clip from `start` on, `count` of them; None without data.rate."""
        return None if self.timed is None else self.timed.numbers(start, count)

    def read(
        self, start: int, count: int, interval: int | None, size: int | tuple[int, int], **options: Any
    ) -> np.ndarray:
        """Return a clip, uint8 (count, H, W, 3), as the check found it; `options`: see `read_frames`."""
        settings = {"numbers": self.numbers(start, count), "margins": self.margins} | options
        return read_frames(
            self.source.path,
            start,
            count,
            interval or 1,
            size,
            seek_points=self.scan.seek_points,
            interpretation=self.scan.interpretation,
            pictures=self.source.pictures,
            intact=not self.scan.broken,
            **settings,
        )

    @property
    def content(self) -> Content:
        """The fingerprint by which copies of this source are found."""
        return Content(self.scan.frames, self.scan.thumbnails, self.scan.inside)

    @property
    def problem(self) -> str | None:
        """Reason why no clip can be taken from this source, or None."""
        if self.scan.problem or self.windows:
            return self.scan.problem
        if self.scan.stills:
            return f"{self.scan.frames} single pictures, not the frames of one video: for joint images only"
        if self.no_clips:
            return "; ".join((self.no_clips, *self.scan.remarks))
        longest = max((stop - start for start, stop in self.scan.runs()), default=0)
        why = f"too short: {longest} frames in a row, a clip spans {self.span}"
        return "; ".join(filter(None, (why, self.shots_words, *self.scan.remarks)))

    @property
    def applied_words(self) -> str:
        """Conversions applied after decoding, in words; empty without any."""
        return one_line("; ".join(self.scan.applied))

    @property
    def shots_words(self) -> str | None:
        """Cuts at which the source is split, in words; None if it is one shot."""
        return "; ".join(self.scan.parted) or None

    @property
    def uneven_words(self) -> str | None:
        """Unevenness of the frame rate, in words, and the frames that data.rate leaves out; None if even."""
        slow = self.timed.slow_frames(self.scan) if self.timed and not self.scan.problem else 0
        left_out = f"; {slow} of {self.scan.frames} frames come more slowly than data.rate and are left out"
        words = uneven_words(self.scan.times_ms)
        return f"{words}{left_out if slow else ''}" if words else None

    @property
    def marks(self) -> tuple[Margins, ...]:
        """Boxes of text or marks burnt into the frames after `margins` are cropped."""
        return marks_inside(self.scan.marks, self.margins)

    @property
    def used_size(self) -> tuple[int, int]:
        """Height and width of a frame after `margins` are cropped, in pixels."""
        top, bottom, left, right = self.margins
        return round(self.scan.height * (1 - top - bottom)), round(self.scan.width * (1 - left - right))

    @property
    def crop_words(self) -> str | None:
        """Cropped borders in pixels, in words; None without any."""
        lengths = (self.scan.height,) * 2 + (self.scan.width,) * 2
        sides = zip(("top", "bottom", "left", "right"), self.margins, lengths, strict=True)
        cut = [f"{side} {round(part * length)}" for side, part, length in sides if part]
        return f"cropped by {', '.join(cut)} pixels" if cut else None

    @property
    def marks_words(self) -> str | None:
        """Positions of possible burnt-in text or logos, in words; None without any."""
        return ", ".join(dict.fromkeys(map(position_words, self.marks))) or None


@dataclass(frozen=True)
class CheckReport:
    """The check of a whole folder."""

    root: Path
    frames: int
    interval: int | None
    reports: tuple[SourceReport, ...]
    unlisted: dict[str, str]
    other_files: tuple[str, ...]
    rate: float | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def usable(self) -> tuple[SourceReport, ...]:
        """The sources that give at least one clip."""
        return tuple(report for report in self.reports if report.windows)

    @property
    def pace(self) -> str:
        """Spacing of a clip's frames, in words."""
        return f"at interval {self.interval}" if self.rate is None else f"at {self.rate:g} frames per second"

    @property
    def fps(self) -> float | None:
        """Frames per second of the clips: the median over the sources; None if unknown."""
        if self.rate is not None:
            return self.rate
        rates = [source.scan.fps for source in self.usable if source.scan.fps]
        return median(rates) / self.interval if rates else None

    @property
    def bad(self) -> tuple[SourceReport, ...]:
        """The sources that give none."""
        return tuple(report for report in self.reports if not report.windows)

    @property
    def stills(self) -> tuple[SourceReport, ...]:
        """The sources that give no clip, but single pictures that may be joint images."""
        return tuple(report for report in self.bad if report.scan.stills and not report.scan.problem)

    @property
    def clips(self) -> int:
        """The number of clips in one epoch over everything."""
        return sum(len(report.windows) for report in self.reports)

    @cached_property
    def copies(self) -> list[tuple[str, ...]]:
        """The names of videos that show the same, group by group; they stay on one side of the split."""
        return find_copies((report.source.name, report.content) for report in self.reports)

    @property
    def split_note(self) -> str | None:
        """Effect of folders named train, val or test, in one clause; None without such folders."""
        sides = sides_by_folder(report.source.name for report in self.usable)
        return folder_note(sides) if HELD_OUT in sides.values() else None

    @property
    def rates_note(self) -> str | None:
        """Frame rates that a fixed interval mixes, in one clause; None if they are alike."""
        rates = [source.scan.fps for source in self.usable if source.scan.fps]
        if self.rate is not None or not rates or max(rates) <= RATES_ALIKE * min(rates):
            return None
        return (
            f"frame rates lie between {min(rates):.4g} and {max(rates):.4g} per second, but data.interval is "
            "one for all: motion looks faster in the slow ones; set data.rate and data.interval=null to take "
            "clips by time (slower videos are left out)"
        )

    @property
    def generated_note(self) -> str | None:
        """Videos that MedSora generated, in one clause; None if none is marked so."""
        names = [source.source.name for source in self.usable if source.scan.generated]
        return f"generated by MedSora, not recorded: {count_videos(names)}; leave them out" if names else None

    @property
    def copies_note(self) -> str | None:
        """Number of copies, in one clause with the largest groups' names; None without any."""
        if not self.copies:
            return None
        shown = sorted(self.copies, key=len, reverse=True)[:MAX_GROUPS_NAMED]
        names = "; ".join(
            " = ".join(group[:MAX_COPIES_NAMED]) + (" = ..." if len(group) > MAX_COPIES_NAMED else "")
            for group in shown
        )
        more = "; ..." if len(self.copies) > len(shown) else ""
        count = sum(map(len, self.copies)) - len(self.copies)
        return (
            f"{count} {'video is a copy of another' if count == 1 else 'videos are copies of others'}: "
            f"{names}{more}; new runs keep copies on one side of the split, but each is trained on: remove "
            "them"
        )

    def picture_notes(self) -> list[str]:
        """Return what the names of pictures imply, one clause each: how many, the first, and what is done."""
        notes = []
        for kind in dict.fromkeys(some.kind for some in self.left_out):
            of_kind = [some for some in self.left_out if some.kind == kind]
            notes.append(
                f"{kind} are left out: {sum(some.count for some in of_kind)} in {_count(of_kind, 'folder')}, "
                f"the first: {of_kind[0].name} ({of_kind[0].count} {of_kind[0].words()})"
            )
        if stills := self.stills:
            notes.append(
                f"{sum(still.scan.frames for still in stills)} pictures are single ones, not the frames of a "
                f"video, and serve as joint images only: {_count(stills, 'source')}, the first: "
                f"{stills[0].source.name}"
            )
        recordings = [r.source for r in self.reports if r.source.recording and not r.scan.problem]
        if parts := [source for source in recordings if source.name != source.folder_name]:
            folders = dict.fromkeys(source.folder_name for source in parts)
            notes.append(
                f"{_count(folders, 'folder')} with the pictures of {len(parts)} recordings by their names: "
                f"each recording is a video of its own, the first: {parts[0].name}"
            )
        if gaps := [source for source in recordings if source.recording.breaks]:
            first, at = gaps[0].recording.pictures, gaps[0].recording.breaks[0]
            total = sum(len(source.recording.breaks) for source in gaps)
            notes.append(
                f"no clip crosses a gap in the frames' numbers: {total} in "
                f"{_count(gaps, 'source')}, the first: {gaps[0].name} between {first[at - 1]} and {first[at]}"
            )
        steps = [source for source in recordings if source.recording.step not in (None, 0, 1)]
        if steps := [source for source in steps if source.recording.step.denominator == 1]:
            notes.append(
                f"the frames' numbers rise by more than 1, which is no gap: {_count(steps, 'source')}, the "
                f"first: {steps[0].name} by {steps[0].recording.step}"
            )
        return notes

    def complaints(self) -> list[str]:
        """Return one line for everything that is left out or damaged: what a training run prints."""
        stills = {report.source.name for report in self.stills}
        lines = [f"left out {r.source.name}: {r.problem}" for r in self.bad if r.source.name not in stills]
        lines += [f"left out the folder {name}: {reason}" for name, reason in self.unlisted.items()]
        damaged = [r for r in self.usable if r.scan.remarks]
        lines += [f"used as far as it decodes: {r.source.name}: {'; '.join(r.scan.remarks)}" for r in damaged]
        uneven, by_time = "frames are taken by number although they are", "; data.rate takes them by time"
        if self.rate is not None:
            uneven, by_time = "clips are taken by time; frames are", ""
        for what, words_of, advice in (
            ("converted as the files specify, or as players show them, in", lambda r: r.applied_words, ""),
            ("no clip crosses the shots of", lambda r: r.shots_words, ""),
            (f"{uneven} unevenly spaced in", lambda r: r.uneven_words, by_time),
            ("borders are cut off in", lambda r: r.crop_words, ""),
            (
                f"{MARKS} in",
                lambda r: r.marks_words,
                "; a model would learn it: crop it (data.crop=[top,bottom,left,right]) or remove the file",
            ),
        ):
            if affected := [(r.source.name, words) for r in self.usable if (words := words_of(r))]:
                name, words = affected[0]
                lines.append(f"{what} {_count(affected, 'source')}, the first: {name}: {words}{advice}")
        lines += self.picture_notes()
        lines += filter(None, (self.copies_note, self.rates_note, self.generated_note))
        return [one_line(line) for line in lines]

    def require_clips(self) -> None:
        """Raise `BadInput` with one sentence if there is no usable clip at all."""
        if self.clips:
            return
        if not self.reports:
            others = "".join(f"; {note}" for note in self.picture_notes())
            if files := self.other_files:
                others += f"; it holds {_count(files, 'file')} of other kinds, such as {files[0]}"
            raise BadInput(
                f"{self.root} holds no videos: neither video files nor folders of pictures{others}."
            )
        first = self.reports[0]
        more = len(self.reports) - 1
        others = f" ({more} more file{'s fail' if more > 1 else ' fails'} too)" if more else ""
        raise BadInput(
            f"{self.root} gives no usable clip of {self.frames} frames {self.pace}: "
            f"{first.source.name}: {first.problem}{others}."
        )


def check_folder(
    root: str | Path,
    *,
    frames: int = 17,
    interval: int | None = 3,
    rate: float | None = None,
    clip_stride: int | None = None,
    crop: str | Sequence[float] = "none",
    cross_cuts: bool = False,
    cache_path: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Scan every source below `root`, or load its cached scan, and count its clips.

    A clip is `frames` frames, every `interval`-th one, or with `rate` so many per second, by time; a source
    that has fewer is left out. `clip_stride` source frames lie between enumerated clips (default: one clip's
    span). `crop` sets what is cut off every frame: "none", "auto" (each source's
    own black borders), or parts of height and width (top, bottom, left, right). With `cross_cuts`, clips may
    cross hard cuts. Scans are kept in `cache_path` (default: below runs/cache) and repeated when a file's
    size or modification time changes.
    `on_progress(done, total)` is called after each source.
    Raises `BadInput` if there is no such folder; bad files are reported, never raised.
    """
    root = Path(root)
    listed = find_sources(root)
    cache = CheckCache(Path(cache_path) if cache_path else default_cache_path(root))
    scans = {source: scan for source in listed.sources if (scan := cache.get(source)) is not None}
    missing = [source for source in listed.sources if source not in scans]
    if missing:
        saved = time.monotonic()
        try:
            for source, scan in _scan_all(missing):
                scans[source] = scan
                if scan.is_lasting:
                    cache.put(source, scan)
                if on_progress:
                    on_progress(len(scans), len(listed.sources))
                if time.monotonic() - saved > SAVE_EVERY_S:
                    cache.save()
                    saved = time.monotonic()
        finally:
            cache.save()
    reports = []
    for source in listed.sources:
        scan = scans[source].without_hard_cuts() if cross_cuts else scans[source]
        timed, span, windows, no_clips = _clips_of(scan, frames, interval, rate, clip_stride)
        margins = scan.margins if crop == "auto" else NO_MARGINS if crop == "none" else tuple(crop)
        reports.append(SourceReport(source, scan, tuple(windows), span, margins, timed, no_clips))
    others = listed.unlisted, listed.other_files, rate, listed.left_out
    return CheckReport(root, frames, interval, tuple(reports), *others)


def _clips_of(
    scan: Scan, frames: int, interval: int | None, rate: float | None, stride: int | None
) -> tuple[TimedClips | None, int, list[Window], str | None]:
    """Return the clips by time, if so, the frames that a clip spans, its windows, and why there are none."""
    if rate is None:
        span = clip_span(frames, interval)
        return None, span, windows_of(scan, span, stride or span), None
    if scan.problem:
        return None, frames, [], None
    try:
        timed = timed_clips(scan, frames, rate)
    except NoClips as error:
        return None, frames, [], str(error)
    windows, slow = timed.windows(scan, stride), None
    if not windows and timed.slow_frames(scan):
        slow = f"slower than data.rate: {uneven_words(scan.times_ms)}"
    return timed, timed.span, windows, slow


def clip_windows(
    scan: Scan, frames: int, interval: int | None, rate: float | None, stride: int | None = None
) -> list[Window]:
    """Return the windows of the clips that `check_folder` counts in a source; none if it has a problem."""
    return [] if scan.problem else _clips_of(scan, frames, interval, rate, stride)[2]


def _count(things: Collection[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _scan_all(sources: list[Source]) -> Iterator[tuple[Source, Scan]]:
    """Scan in parallel; PyAV releases the GIL while it decodes. Stops soon when interrupted.

    One thread takes all small files: several would spend more time on switching the GIL.
    """
    pools = several, one = ThreadPoolExecutor(DEFAULT_THREADS), ThreadPoolExecutor(1)
    try:
        running = {
            (one if _is_small(source) else several).submit(scan_source, source): source for source in sources
        }
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        for wait, pool in product((False, True), pools):
            pool.shutdown(wait, cancel_futures=True)


def _is_small(source: Source) -> bool:
    try:
        return source.recording is None and source.path.stat().st_size < MAX_SMALL_FILE_BYTES
    except OSError:  # the scan reports what is wrong with it
        return True
