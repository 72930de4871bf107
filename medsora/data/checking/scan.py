"""One decoding pass over one source: its true number of frames, where to enter it, what is wrong with it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from medsora.data.checking.burnt_in import EvenSamples
from medsora.data.checking.copies import thumbnails
from medsora.data.checking.cuts import SAMPLED_PX, CutFinder
from medsora.data.checking.masks import MaskFinder
from medsora.data.checking.timing import read_timing
from medsora.data.reading.decoding import (
    AS_FLAGGED,
    CANNOT_BE_READ,
    CHANGED,
    TAKES_LONGER,
    Interpretation,
    SeekPoint,
    UnreadableVideo,
    VideoReader,
    has_16_bits,
)
from medsora.data.reading.depth import FULL_WHITE, UnknownWhite, WhiteFinder, depth_words, is_deep
from medsora.data.reading.find import Source
from medsora.data.reading.frame_folder import read_image, read_picture
from medsora.data.reading.interlacing import FieldOrderDetector
from medsora.data.reading.margins import NO_MARGINS, Margins, crop
from medsora.data.reading.picture_names import Recording
from medsora.data.reading.video_io import reader_info

SEEK_SPACING = 8  # frames; more points would only cost memory where every frame is a key frame
AIMS = (0, 1, 2)  # how many points before its own a seek aims: transport and program streams land late
REORDERED = 16  # frames that a decoder may hold back before it shows them
LIMIT_S, LIMIT_S_PER_MB = 60.0, 20.0  # time limit of a pass; only crafted files take longer for their size
SEEKABLE_BY_BYTE = {"mpegts", "mpeg"}  # containers whose packets can be read from any position on
HARD_CUTS = ("hard cut", "hard cuts")
MAX_FRAMES_NAMED = 5  # first frames of shots that a message lists
MAX_SIZE_CHANGES = 0.1  # share of a recording's pictures that may be of another size
CHECK_FAILS = "checking it failed; please report this to MedSora's authors"
HEADER_TOLERANCE = 2  # frames by which headers of intact files may be off (edit lists, encoder delay)


@dataclass(frozen=True)
class Scan:
    """Findings of one pass over a source; they do not depend on the length of a clip.

    `frames` is counted by decoding. `seek_points` are entries proven by trying; without any, decoding starts
    at the file's start. `broken` are frames that do not decode or may be torn: no clip may touch them.
    `problem` is why nothing can be used, `remarks` what else is worth reporting. `margins` are black
    borders, `marks` the boxes of text or marks burnt into the frames (`medsora.data.checking.burnt_in`).
    `interpretation` is how `read_frames` reads the frames, `applied` the same in words
    ("rotated 90°", "deinterlaced"); `width` and `height` are those of the frames as they are read.
    `thumbnails` and `inside` identify copies (`medsora.data.checking.copies.Content`). `breaks` are frames
    that do not continue the one before: a hard cut, missing frames, another size, time stamps that jump or
    pause; `parted` lists them in words. `hard_cuts` are those of them that the pictures alone show. Of
    `stills`, none does. `times_ms` are the frames' times where these are not even
    (`medsora.data.checking.timing`). `generated` videos are marked as made by MedSora.
    """

    container: str = "?"
    codec: str = "?"
    width: int = 0
    height: int = 0
    fps: float | None = None
    frames: int = 0
    seek_points: tuple[SeekPoint, ...] = ()
    broken: tuple[int, ...] = ()
    problem: str | None = None
    remarks: tuple[str, ...] = ()
    margins: Margins = NO_MARGINS
    marks: tuple[Margins, ...] = ()
    interpretation: Interpretation = AS_FLAGGED
    applied: tuple[str, ...] = ()
    thumbnails: str = ""
    inside: str = ""
    breaks: tuple[int, ...] = ()
    parted: tuple[str, ...] = ()
    times_ms: tuple[int, ...] = ()
    stills: bool = False
    generated: bool = False
    hard_cuts: tuple[int, ...] = ()

    @property
    def is_lasting(self) -> bool:
        """Whether the next check will find the same; a failed or slow read or another file is no proof."""
        reported = (self.problem or "", *self.remarks)
        passing = CANNOT_BE_READ, TAKES_LONGER, CHECK_FAILS, CHANGED
        return not any(words in text for words in passing for text in reported)

    def without_hard_cuts(self) -> Scan:
        """Return the scan of a source whose clips may cross hard cuts."""
        breaks = tuple(frame for frame in self.breaks if frame not in self.hard_cuts)
        parted = tuple(words for words in self.parted if not any(name in words for name in HARD_CUTS))
        return replace(self, breaks=breaks, parted=parted, hard_cuts=())

    def runs(self) -> list[tuple[int, int]]:
        """Return the stretches (start, stop) of consecutive frames that decode and are one shot.

        No clip reaches beyond one: whatever draws clips or frames of one scene draws them from these.
        """
        return self._runs

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:  # joint images are drawn from these again and again
        breaks, broken = range(self.frames) if self.stills else self.breaks, set(self.broken)
        edges = {0, self.frames, *breaks, *broken, *(frame + 1 for frame in broken)}
        return [(low, high) for low, high in pairwise(sorted(edges)) if low not in broken]


def scan_source(source: Source) -> Scan:
    """Decode `source` once from start to end, holding one frame at a time. Never raises for a bad file."""
    try:
        return _scan_folder(source.path, source.recording) if source.recording else _scan_file(source.path)
    except UnreadableVideo as error:
        return Scan(problem=error.reason)
    except UnknownWhite as error:
        return Scan(problem=str(error))
    except OSError as error:
        return Scan(problem=f"{CANNOT_BE_READ}: {error.strerror or error}")
    except Exception as error:  # one file never ends the check of a folder
        return Scan(problem=f"{CHECK_FAILS}: {type(error).__name__}: {error}")


def _scan_file(path: Path, white: float | None = None) -> Scan:
    limit = LIMIT_S + LIMIT_S_PER_MB * path.stat().st_size / 1e6 if path.exists() else LIMIT_S
    with VideoReader(path, limit, Interpretation(white=white)) as reader:
        info = reader_info(reader)
        scan = Scan(info.container, info.codec, fps=info.fps, generated=info.generated)
        points: list[SeekPoint] = []
        positions: dict[int, int | None] = {}  # the byte at which each point's packet begins
        hits: list[int] = []  # frames near which something did not decode
        count, skipped = 0, 0
        stamps: list[int | None] = []
        resized, size = [], None
        samples, fields, whites, interlaced = EvenSamples(), FieldOrderDetector(info.codec), WhiteFinder(), 0
        cuts = CutFinder()
        for number, frame in enumerate(reader.frames()):
            count = number + 1
            stamps.append(frame.pts)
            if size not in (None, (frame.width, frame.height)):
                resized.append(number)
            size = frame.width, frame.height
            interlaced += frame.interlaced_frame
            if frame.is_corrupt or reader.skipped_packets > skipped:
                hits.append(number)
                skipped = reader.skipped_packets
            else:
                fields.add(frame)
                if white is None and has_16_bits(frame):
                    whites.add(reader.deep_pixels(frame))
                if samples.wants(number):
                    samples.add(reader.pixels(frame))
                cuts.add(number, reader.sampled(frame, SAMPLED_PX))
            if not frame.key_frame or frame.pts is None:
                continue
            position = reader.key_positions.pop(frame.pts, None)
            if number >= (points[-1].frame if points else 0) + SEEK_SPACING:
                points.append(SeekPoint(number, frame.pts, reader.checksum(frame), frame.pts))
                positions[number] = position
        if reader.skipped_packets > skipped:
            hits.append(count - 1)
        remarks = _shortfall(reader, info.header_frames, count, stamps[-1] if stamps else None)
        tick = float(reader.stream.time_base or 0)
        hidden = reader.hidden_packets
        width, height = reader.shown_size(info.width, info.height)
        scan = replace(scan, width=width, height=height)
    if not count:
        return replace(scan, problem="no frame decodes", remarks=remarks)
    if whites.white() not in (None, FULL_WHITE):
        return _scan_file(path, whites.white())
    interpretation = Interpretation(fields.field_order(), white)
    hidden_words = f"{hidden} frames that the file hides left out (edit list)" if hidden else None
    combs_words = _deinterlaced(interlaced, count, interpretation)
    applied = filter(None, (*reader.applied, hidden_words, depth_words(white), combs_words))
    timing = read_timing([None if stamp is None else stamp * tick for stamp in stamps], scan.fps)
    by_byte = [positions[point.frame] for point in points] if info.container in SEEKABLE_BY_BYTE else []
    proven = _entries(path, points, by_byte, stamps)
    parts = {
        HARD_CUTS: cuts.cuts(),
        ("jump of the time stamps", "jumps of the time stamps"): timing.jumps,
        ("pause", "pauses"): timing.pauses,
        ("change of size", "changes of size"): tuple(resized),
    }
    torn = _torn(hits, proven, count, neighbours=bool(interlaced or interpretation.field_order))
    if hits:
        remarks += (f"damaged near frame {hits[0]}: {len(torn)} frames that this may have torn are left out",)
    if points and not proven:
        remarks += ("frames cannot be found by seeking; clips are decoded from the file's start",)
    return replace(
        scan,
        fps=timing.fps,
        frames=count,
        seek_points=proven,
        broken=torn,
        remarks=remarks,
        interpretation=interpretation,
        applied=tuple(applied),
        breaks=tuple(sorted({frame for frames in parts.values() for frame in frames})),
        parted=_parted_words(parts),
        times_ms=timing.times_ms,
        hard_cuts=tuple(sorted(set(parts[HARD_CUTS]) - {*timing.jumps, *timing.pauses, *resized})),
        **_shown_by(samples),
    )


def _shown_by(samples: EvenSamples) -> dict[str, Any]:
    """Return what a `Scan` holds of frames spread over the source: borders, marks, thumbnails."""
    still, frames = samples.still_marks(), samples.kept
    inside = thumbnails([crop(frame, still.margins) for frame in frames]) if any(still.margins) else ""
    borders = {"margins": still.margins, "marks": still.marks}
    return borders | {"thumbnails": thumbnails(frames), "inside": inside}


def _parted_words(parts: Mapping[tuple[str, str], Sequence[int]]) -> tuple[str, ...]:
    """Return "2 hard cuts (at frames 40, 80)" and the like, by names in singular and plural."""
    words = []
    for (one, many), frames in parts.items():
        named = ", ".join([*map(str, frames[:MAX_FRAMES_NAMED]), *["..."] * (len(frames) > MAX_FRAMES_NAMED)])
        if frames:
            several = f"{len(frames)} {many} (at frames {named})"
            words.append(f"1 {one} (at frame {named})" if len(frames) == 1 else several)
    return tuple(words)


def _deinterlaced(flagged: int, count: int, interpretation: Interpretation) -> str | None:
    if interpretation.field_order:
        return f"deinterlaced (not flagged, {interpretation.field_order} field first)"
    if not flagged:
        return None
    return "deinterlaced" if flagged == count else f"deinterlaced ({flagged} of {count} frames)"


def _torn(hits: list[int], points: tuple[SeekPoint, ...], count: int, *, neighbours: bool) -> tuple[int, ...]:
    """Return the frames that damage at `hits` may have reached: from an entry well before to one well after.

    Beyond these, decoding from an entry gives the same frames as decoding from the start. Where there are no
    entries, decoding always begins at the start, and what is torn is torn the same way each time. With
    `neighbours`, frames are made of the ones beside them too, which must not be torn either.
    """
    entries = [0, *(point.frame for point in points), count]
    torn = set() if points else set(hits)
    for hit in hits if points else ():
        first = entries[bisect_right(entries, max(0, hit - REORDERED)) - 1]
        behind = bisect_left(entries, hit + REORDERED)
        torn.update(range(first, entries[behind] if behind < len(entries) else count))
    if neighbours:
        torn |= {frame + step for frame in torn for step in (-1, 1) if 0 <= frame + step < count}
    return tuple(sorted(torn))


def _shortfall(
    reader: VideoReader, header_frames: int | None, count: int, last_pts: int | None
) -> tuple[str, ...]:
    remarks = []
    if header_frames and count < header_frames - reader.hidden_packets - HEADER_TOLERANCE:
        remarks.append(f"truncated: header says {header_frames} frames, {count} decode")
    elif missing := _missing_seconds(reader, last_pts):
        remarks.append(f"truncated: the last {missing:.0f} seconds that the header promises do not decode")
    elif reader.container.format.name == "asf" and not reader.container.duration:
        remarks.append("truncated or never finished: only then does such a file lack its length")
    if reader.stopped_by:
        remarks.append(f"reading stops after frame {count} ({reader.stopped_by})")
    return tuple(remarks)


def _missing_seconds(reader: VideoReader, last_pts: int | None) -> float:
    """Return how much of the promised time no frame fills; 0 if that is little or cannot be known."""
    container, stream = reader.container, reader.stream
    if last_pts is None or not container.duration or len(container.streams) > 1:  # sound may last longer
        return 0.0
    promised = container.duration / 1_000_000
    shown = float((last_pts - (stream.start_time or 0)) * stream.time_base)
    return promised - shown if promised - shown > max(1.0, 0.05 * promised) else 0.0


def _entries(
    path: Path, points: list[SeekPoint], by_byte: list[int | None], stamps: list[int | None]
) -> tuple[SeekPoint, ...]:
    """Return the points at which decoding can start, with proven aims.

    Where time stamps do not rise throughout, these are positions in the file (`by_byte`, one for each point,
    if the container can be read from any), or time stamps that occur once.
    """
    if None not in stamps and all(before < after for before, after in pairwise(stamps)):
        return _proven(path, points, [point.pts for point in points])
    proven = _proven(path, points, by_byte, by_byte=True) if by_byte else ()
    times = Counter(stamps)
    once = [point for point in points if times[point.pts] == 1]
    return proven or _proven(path, once, [point.pts for point in once])


def _proven(
    path: Path, points: Sequence[SeekPoint], targets: Sequence[int | None], *, by_byte: bool = False
) -> tuple[SeekPoint, ...]:
    """Return the points with aims at which trial seeks land on the right frames, or none if no aim does.

    `targets` are the container's seek targets for each point: time stamps or, `by_byte`, positions.
    """
    known = [(point, target) for point, target in zip(points, targets, strict=True) if target is not None]
    for lag in AIMS:
        aimed = [
            point._replace(aim=target, by_byte=by_byte)
            for (_, target), (point, _) in zip(known, known[lag:], strict=False)
        ]
        trials = {aimed[0], aimed[len(aimed) // 2], aimed[-1]} if aimed else set()
        if all(_lands(path, point) for point in trials):
            return tuple(aimed)
    return ()


def _lands(path: Path, point: SeekPoint) -> bool:
    with VideoReader(path, LIMIT_S) as reader:
        return reader.frames_from(point) is not None


def _scan_folder(folder: Path, recording: Recording) -> Scan:
    pictures = [folder / name for name in recording.pictures]
    codec = pictures[0].suffix.lstrip(".").lower()
    if recording.problem:
        return Scan("frames", codec, problem=recording.problem)
    broken: list[int] = []
    reasons: list[str] = []
    sizes: dict[int, tuple[int, int]] = {}
    applied_to: Counter[str] = Counter()
    samples, whites, any_deep, cuts = EvenSamples(), WhiteFinder(), False, CutFinder()
    masks = MaskFinder(called_masks=recording.named_as_masks)
    for number, path in enumerate(pictures):
        try:
            picture = read_picture(path)
            whites.add(picture.values)
        except UnreadableVideo as error:
            broken.append(number)
            reasons.append(f"{path.name} {error.reason}")
        except UnknownWhite as error:
            raise UnknownWhite(f"{path.name}: {error}") from error
        else:
            height, width = picture.values.shape[:2]
            sizes[number] = width, height
            any_deep |= is_deep(picture.values)
            if picture.orientation.words:
                applied_to[picture.orientation.words] += 1
            if picture.transparent:
                applied_to["transparency ignored"] += 1
            if samples.wants(number):
                masks.add(picture.values)
                if not any_deep:
                    samples.add(picture.values)
            if not any_deep:
                cuts.add(number, picture.values)
    if not sizes:
        return Scan("frames", problem=f"none of its {len(pictures)} pictures decodes: {reasons[0]}")
    if words := masks.words():
        return Scan("frames", codec, problem=words)
    white = whites.white()
    if any_deep:  # the white level is known only now
        samples = EvenSamples()
        readable = [path for number, path in enumerate(pictures) if number not in set(broken)]
        for number, path in enumerate(readable):
            if samples.wants(number):
                samples.add(read_image(path, white))
    remarks = []
    if broken:
        remarks.append(f"{len(broken)} of {len(pictures)} pictures do not decode, the first: {reasons[0]}")
    counts = Counter(sizes.values())
    (((width, height), most),) = counts.most_common(1)
    odd = [number for number, size in sizes.items() if counts[size] == 1]
    if 2 * most < len(sizes) or len(odd) > max(1, MAX_SIZE_CHANGES * len(sizes)):
        odd = []
    if odd:
        one = f"1 picture of another size is left out: {pictures[odd[0]].name}"
        more = f"{len(odd)} pictures of sizes of their own are left out, the first: {pictures[odd[0]].name}"
        remarks.append(one if len(odd) == 1 else more)
    alike = {number: size for number, size in sizes.items() if number not in odd}
    changes = [after for before, after in pairwise(alike) if alike[before] != alike[after]]
    stills = recording.stills or len(changes) > max(1, MAX_SIZE_CHANGES * len(alike))
    if changes:
        crossed = "" if stills else f", which change {len(changes)} times; no clip crosses a change"
        remarks.append(f"its pictures have {len(set(alike.values()))} different sizes{crossed}")
    known = {*recording.breaks, *changes}
    hard_cuts = () if stills else tuple(frame for frame in cuts.cuts() if frame not in known)
    if recording.named_as_masks:
        remarks.append("it is called masks, but its pictures are none: they are used")
    parts = {words: f" ({n} of {len(sizes)})" for words, n in applied_to.items() if n < len(sizes)}
    applied = [words + parts.get(words, "") for words in applied_to]
    if recording.by_value:
        applied.append(f"frames ordered by value ({', '.join(recording.pictures[:3])}, ...)")
    return Scan(
        "frames",
        codec,
        width,
        height,
        frames=len(pictures),
        broken=tuple(sorted({*broken, *odd})),
        remarks=tuple(remarks),
        interpretation=Interpretation(white=white),
        applied=tuple(filter(None, (*applied, depth_words(white)))),
        breaks=tuple(sorted({*recording.breaks, *changes, *hard_cuts})),
        parted=_parted_words({HARD_CUTS: hard_cuts}),
        stills=stills,
        hard_cuts=hard_cuts,
        **_shown_by(samples),
    )
