"""Findings from the names of pictures: which are frames of one recording, their order, which are no frames.

A name is a prefix, a frame number and the rest. Pictures that share prefix and rest are one recording if
some of their numbers follow each other in equal steps; where a step is longer than usual, frames are missing.
Masks and posters are recognised by words (`x.png` and `x_mask.png`) and by the names that they share.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

MIN_RUN = 3  # minimum frames in equal steps of a recording; shorter runs occur by chance
MAX_STRAYS = 0.1  # share of a folder's pictures; more that belong to no recording are kept as stills
MIN_NAMED_ALIKE = 0.5  # share of a folder's masks that must have the name of a frame

_MASK = (
    r"annot(?:ation)?s?|groundtruth|gt|label(?:id)?s?|masks?|segmask|segmentations?|segm?|segs|trimap|truth"
)
_OF_MASKS = r"binary|class|colou?r|ground|instance|semantic|watershed"
_POSTER = r"cover|logo|poster|preview|thumb|thumbnail|thumbs|title"
_FRAME = r"f|fr|frames?|frm|images?|imgs?|im|inputs?|originals?|pic|pictures?|raw|rgb|time|t"
_RECORDING = r"camera|cam|clip|id|p|scene|sequence|series|seq|shot|s|video|vid|view|v"
_PATIENT = r"case|patients?|pat|study|subject"
_LETTER = r"[^\W\d_]"
_WORD = re.compile(rf"{_LETTER}+")
_IS_FRAME, _IS_PATIENT = re.compile(_FRAME), re.compile(_PATIENT)
_IS_OTHER = re.compile(f"{_RECORDING}|{_PATIENT}")
_NOT_SHARED = re.compile(f"{_MASK}|{_OF_MASKS}|{_POSTER}|{_FRAME}")
MASK_NAME, POSTER_NAME, FRAME_NAME = (
    re.compile(rf"(?<!{_LETTER})(?:{sought})(?!{_LETTER})") for sought in (_MASK, _POSTER, _FRAME)
)


@dataclass(frozen=True)
class Recording:
    """Pictures of one folder that are one source."""

    pictures: tuple[str, ...]  # file names in the order of their frames
    breaks: tuple[int, ...] = ()  # frames before which others are missing
    step: int | Fraction | None = None  # by how much the number usually rises; 0: one frame, None: no numbers
    stills: bool = False  # no frames of one recording, but single pictures
    plain: bool = True  # all pictures of the folder, in natural order
    by_value: bool = False  # ordered by decimals or times of day, which natural order would mix up
    named_as_masks: bool = False  # named like masks, but no pictures were found that these belong to
    problem: str | None = None  # why they cannot be used


@dataclass(frozen=True)
class LeftOut:
    """Pictures of one folder, `name`, that are left out: `count` of a `kind`, the first one's name.

    `frames` is the folder of the frames that they are masks of, if it is another.
    """

    name: str
    kind: str
    count: int
    example: str
    frames: str | None = None

    def words(self) -> str:
        """Return an example, and the frames that masks are of."""
        return f"such as {self.example}" + (f", of {self.frames}" if self.frames else "")


@dataclass(frozen=True)
class SortedPictures:
    """The pictures of one folder: recordings by the pattern of their names, and what belongs to none."""

    recordings: Mapping[str, Recording]
    masks: Sequence[str] = ()
    posters: Sequence[str] = ()
    strays: Sequence[str] = ()


class _Frame(NamedTuple):
    """A picture's name taken apart: what surrounds the frame number, its value, its digits behind a point."""

    name: str
    before: str
    after: str
    value: int | Fraction
    decimals: str


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def natural_order(names: Iterable[str]) -> list[str]:
    """Return `names` in natural order, names that differ in case or leading zeros alone by their letters."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def has_word(name: str, sought: re.Pattern[str]) -> bool:
    """Return whether a name, without a file's ending, holds one of the words that `sought` matches."""
    return sought.search(name.lower()) is not None


def core(name: str) -> tuple[str, ...]:
    """Return the words and numbers that the name of a frame shares with those of its mask and its poster."""
    parts = re.findall(rf"{_LETTER}+|\d+", _stem(name).lower())
    return tuple(part.lstrip("0") for part in parts if not _NOT_SHARED.fullmatch(part))


def sort_pictures(names: Iterable[str], videos: Collection[str] = ()) -> SortedPictures:
    """Return the recordings among a folder's pictures, and the masks, posters and others that are in none.

    `videos` are the video files that lie in the same folder.
    """
    every = natural_order(names)
    masks = _masks(every)
    posters = _posters([name for name in every if name not in masks], videos)
    rest = [name for name in every if name not in masks and name not in posters]
    recordings = _recordings(rest)
    taken = {name for recording in recordings.values() for name in recording.pictures}
    strays = [name for name in rest if name not in taken]
    if len(strays) > max(MAX_STRAYS * len(rest), len(videos)):
        stills = len(strays) >= MIN_RUN  # fewer are a video that is too short
        recordings["*"] = Recording(tuple(strays), stills=stills)
        strays = []
    return SortedPictures(
        {pattern: replace(r, plain=r.pictures == tuple(every)) for pattern, r in recordings.items()},
        [name for name in every if name in masks],
        [name for name in every if name in posters],
        strays,
    )


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _ending(name: str) -> str:
    return name[len(_stem(name)) :].lower()


def _masks(names: Sequence[str]) -> set[str]:
    """Return the pictures called masks of which at least half have a frame of the same name beside them."""
    called = {name for name in names if has_word(_stem(name), MASK_NAME)}
    if not called or len(called) == len(names):
        return set()
    frames = {core(name) for name in names if name not in called} - {()}
    paired = sum(core(name) in frames for name in called)
    return called if paired >= MIN_NAMED_ALIKE * len(called) else set()


def _posters(names: Sequence[str], videos: Collection[str]) -> set[str]:
    """Return the pictures called posters beside others or videos, and those with the name of a video."""
    shown = {core(video) for video in videos} - {()}
    called = {name for name in names if has_word(_stem(name), POSTER_NAME)}
    if len(called) > max(len(names) / 2, len(videos)):
        called = set()
    return called | {name for name in names if shown and core(name) in shown}


def _recordings(names: Sequence[str]) -> dict[str, Recording]:
    """Return those of `names` that certainly are one recording's, in natural order, by their pattern."""
    counters = _counters(names)
    groups = _groups(counters, _count)
    for read in (_decimal, _time_of_day):
        if all(read(parts, last)[0] == last for _, parts, last in counters):
            continue
        others = _groups(counters, read)
        sure = _are_decimals(others)
        if sure or (sure is None and _boundaries(others) < _boundaries(groups)):
            groups = others
            break
    recordings: dict[str, Recording] = {}
    place = {name: number for number, name in enumerate(names)}
    for frames in groups:
        step, breaks = _steps(frames)
        edges = (0, *breaks, len(frames))
        if max(stop - start for start, stop in pairwise(edges)) < min(MIN_RUN, len(names)):
            continue
        pictures = tuple(frame.name for frame in frames)
        endings = {_ending(name) for name in pictures}
        pattern = f"{frames[0].before}*{frames[0].after}{endings.pop() if len(endings) == 1 else ''}"
        same = next((pair for pair in pairwise(frames) if pair[0].value == pair[1].value), None)
        recordings[pattern] = Recording(
            pictures,
            breaks,
            step,
            by_value=any(place[a] > place[b] for a, b in pairwise(pictures)),
            named_as_masks=all(has_word(_stem(name), MASK_NAME) for name in pictures),
            problem=same
            and f"{same[0].name} and {same[1].name} have the same frame number; rename or remove one of them",
        )
    return recordings


def _counters(names: Sequence[str]) -> list[tuple[str, list[str], int]]:
    """Return (name, parts, position of the frame number) of every name that has one."""
    split = {name: re.split(r"(\d+)", _stem(name)) for name in names}
    alike: defaultdict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for parts in split.values():
        alike[tuple(text.lower() for text in parts[::2])].append(parts)
    constant = {
        texts: {i for i in range(1, len(texts) * 2 - 1, 2) if len({int(parts[i]) for parts in every}) == 1}
        for texts, every in alike.items()
    }
    positions = {texts: _counter_position(texts, constant[texts]) for texts in alike}
    candidates = ((n, p, positions[tuple(text.lower() for text in p[::2])]) for n, p in split.items())
    return [(name, parts, position) for name, parts, position in candidates if position is not None]


def _counter_position(texts: Sequence[str], constant: Collection[int]) -> int | None:
    """Return which part of names is the frame number; `texts` surround the numbers, `constant` never change.

    It is the last number, apart from those that a word marks as something else.
    """
    numbers = range(len(texts) * 2 - 3, 0, -2)
    word = {i: (_WORD.findall(texts[i // 2]) or [""])[-1] for i in numbers}
    framed = [i for i in numbers if _IS_FRAME.fullmatch(word[i])]
    for i in numbers:
        if i in framed:
            return i
        earlier = any(other < i for other in framed)
        if word[i] and (_IS_OTHER.fullmatch(word[i]) or i in constant or earlier):
            continue
        if i in constant and (earlier or texts[i // 2 + 1][:1].isalpha()):  # 640 in 0001_640x480
            continue
        return i
    return next((i for i in numbers if not _IS_PATIENT.fullmatch(word[i])), None)


def _groups(
    counters: Sequence[tuple[str, list[str], int]],
    read: Callable[[list[str], int], tuple[int, int | Fraction]],
) -> list[list[_Frame]]:
    """Return frames by what surrounds their numbers, and by the files' endings where numbers come twice."""
    groups: defaultdict[tuple[str, str], list[_Frame]] = defaultdict(list)
    for name, parts, last in counters:
        first, value = read(parts, last)
        before, after = "".join(parts[:first]), "".join(parts[last + 1 :])
        if before.endswith("-") and (before[-2:-1] in tuple("_ .=-(") or before == "-"):
            before, value = before[:-1], -value  # a sign rather than a dash
        decimals = parts[last] if first == last - 2 else ""
        groups[before.lower(), after.lower()].append(_Frame(name, before, after, value, decimals))
    sequences = []
    for frames in groups.values():
        frames.sort(key=lambda frame: (frame.value, frame.name))
        by_ending: defaultdict[str, list[_Frame]] = defaultdict(list)
        for frame in frames if len({frame.value for frame in frames}) < len(frames) else ():
            by_ending[_ending(frame.name)].append(frame)
        sequences += by_ending.values() or [frames]
    return sequences


def _count(parts: list[str], last: int) -> tuple[int, int]:
    return last, int(parts[last])


def _decimal(parts: list[str], last: int) -> tuple[int, int | Fraction]:
    if last < 3 or parts[last - 1] not in (".", ","):
        return _count(parts, last)
    return last - 2, Fraction(f"{int(parts[last - 2])}.{parts[last]}")


def _time_of_day(parts: list[str], last: int) -> tuple[int, int]:
    """Hours, minutes and seconds with one separator."""
    if last < 5 or parts[last - 1] != parts[last - 3] or parts[last - 1] not in ("-", "_", ":", "."):
        return _count(parts, last)
    hours, minutes, seconds = (int(parts[i]) for i in (last - 4, last - 2, last))
    if minutes > 59 or seconds > 59:
        return _count(parts, last)
    return last - 4, (hours * 60 + minutes) * 60 + seconds


def _are_decimals(groups: Iterable[Sequence[_Frame]]) -> bool | None:
    """Return whether numbers with a point are surely decimals (0.04, 0.2), or counted (1.9, 1.10), or None.

    A counter fills up with zeros in front or not at all, a decimal has none at its end or is filled up there.
    """
    sure = set()
    for frames in groups:
        decimals = [frame.decimals for frame in frames if frame.decimals]
        longer = [digits for digits in decimals if len(digits) > min(map(len, decimals))]
        sure |= {digits[0] == "0" for digits in longer if "0" in (digits[0], digits[-1])}
    return sure.pop() if len(sure) == 1 else None


def _boundaries(groups: Iterable[Sequence[_Frame]]) -> int:
    return sum(1 + len(_steps(frames)[1]) for frames in groups)


def _steps(frames: Sequence[_Frame]) -> tuple[int | Fraction, tuple[int, ...]]:
    """Return by how much numbers usually rise, and the frames before which they rise otherwise.

    That is by half as much or less, or by half as much again or more: a time in milliseconds rises by 33 or
    34, a missing frame doubles it.
    """
    steps = [after.value - before.value for before, after in pairwise(frames)]
    counts = Counter(steps)
    usual = min(counts, key=lambda step: (-counts[step], step), default=0)
    breaks = (number for number, step in enumerate(steps, start=1) if not usual < 2 * step < 3 * usual)
    return usual, tuple(breaks)
