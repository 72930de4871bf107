"""Split into training and held-out videos: by video, patient or folder, never by clip.

Videos that belong together (copies of each other, one patient's) are one unit, and a unit is on one side.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from medsora.data.video_table import alike_note, read_video_table
from medsora.errors import BadInput

log = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held-out"
HELD_OUT_WORDS = ("held-out", "heldout", "held_out", "holdout", "test", "testing")
HELD_OUT_WORDS += ("val", "valid", "validation")
SPLIT_WORDS = dict.fromkeys(("train", "training"), TRAIN) | dict.fromkeys(HELD_OUT_WORDS, HELD_OUT)
FOLDER = "folder"  # the value of data.group that makes each folder a patient
Member = TypeVar("Member")


@dataclass(frozen=True)
class Split:
    """The side of each video by name; a video that it lacks is left out. `notes` are for the user."""

    sides: Mapping[str, str]
    notes: tuple[str, ...] = ()


def draw_split(
    names: Sequence[str],
    holdout: float,
    seed: int,
    *,
    split_csv: str | Path | None = None,
    group: str | None = None,
    copies: Iterable[Sequence[str]] = (),
    kept: Mapping[str, str] | None = None,
    known: Sequence[str] = (),
    by_folder: bool = True,
    stills: Collection[str] = (),
) -> Split:
    """Return the side of each of `names`: from a CSV, from folders named train, val or test, or drawn.

    A CSV is read as `split_by_csv` reads it. Without one, videos below a folder named after a side are on
    that side; if one is named train, videos outside these folders are left out. All others are drawn
    by unit as by `split_by_video`. `group` makes units of patients (`read_groups`), `copies` of videos
    with the same content; a unit with a held-out video is held out as a whole. `known` are further videos
    that a CSV may name. Without `by_folder` folders' names mean nothing. `stills` are those of `names` that
    give no clip: they are not drawn, and trained on unless a held-out video is in their unit.

    `kept` are the sides that a resumed run was trained with, of missing videos too. They stay; new videos are
    trained on unless `split_csv` or their folder holds them out, or they belong to a held-out unit.

    Raises `BadInput` as `split_by_csv` and `read_groups` do, and if a video that was trained on would become
    held out.
    """
    kept = kept or {}
    known = list(dict.fromkeys([*names, *known, *kept]))
    patients: dict[str, str] = {}
    notes: list[str] = []
    if split_csv is not None:
        patients, given = _read_split_csv(Path(split_csv), known)
        given = {name: given[patient] for name, patient in patients.items() if patient in given}
        used, drawn = [name for name in names if name in patients], not given
        if len(used) < len(names):
            notes.append(f"left out {count_videos(set(names) - set(used))}: {split_csv} does not list them")
    else:
        given = sides_by_folder(names) if by_folder else {}
        used, drawn = list(names), HELD_OUT not in given.values()
        if not drawn and not kept:
            notes.append(folder_note(given))
        if TRAIN in given.values() and len(given) < len(used):
            outside = [name for name in used if name not in given]
            notes.append(f"left out {count_videos(outside)}: outside the folders named train, val or test")
            used = list(given)
    everyone = list(dict.fromkeys([*used, *kept]))
    groups = read_groups(group, everyone, known=known)
    if group is not None:
        notes.append(_group_note(used, groups, patients))
    known_patients = {patient for name, patient in patients.items() if patient != name}
    notes += alike_note("groups", known_patients | {groups[n] for n in used if n in groups}, "a patient")
    units = _units(everyone, (groups, patients), copies)
    if kept:
        return Split(_keep_sides(used, given, units, kept), tuple(notes))
    if drawn:
        drawn_units = sorted({unit for name, unit in units.items() if name not in stills})
        sides_of_units = dict.fromkeys(units.values(), TRAIN) | split_by_video(drawn_units, holdout, seed)
    else:
        held_out = {units[name] for name in used if given.get(name) == HELD_OUT}
        sides_of_units = {unit: HELD_OUT if unit in held_out else TRAIN for unit in units.values()}
    sides = {name: sides_of_units[units[name]] for name in used}
    if not drawn and (moved := [n for n in used if given.get(n, TRAIN) == TRAIN and sides[n] == HELD_OUT]):
        notes.append(
            f"held out {count_videos(moved)} that would be trained on: a held-out video has the same content "
            "or patient"
        )
    return Split(sides, tuple(notes))


def _keep_sides(
    used: Sequence[str], given: Mapping[str, str], units: Mapping[str, str], kept: Mapping[str, str]
) -> dict[str, str]:
    """Return the sides of a resumed run's videos: those of before, and of new ones that of their unit."""
    known_sides: defaultdict[str, set[str]] = defaultdict(set)
    for name, side in kept.items():
        known_sides[units[name]].add(side)
    held_out = {unit for unit, sides in known_sides.items() if HELD_OUT in sides}
    for name in used:
        if given.get(name) != HELD_OUT:
            continue
        if kept.get(name) == TRAIN or (name not in kept and TRAIN in known_sides[units[name]]):
            raise BadInput(
                f"'{name}' would be held out now, but the run was trained on it, a copy of it or its "
                "patient; put it back among the training videos, or take another run.name."
            )
        held_out.add(units[name])
    return {name: kept.get(name) or (HELD_OUT if units[name] in held_out else TRAIN) for name in used}


def sides_by_folder(names: Iterable[str]) -> dict[str, str]:
    """Return the side of every video that lies below a folder named train, val, test or the like.

    The outermost such folder decides. A folder of frames may itself have such a name.
    """
    words = ((name, (part.lower() for part in PurePosixPath(name).parts)) for name in names)
    sides = {name: next((SPLIT_WORDS[p] for p in parts if p in SPLIT_WORDS), None) for name, parts in words}
    return {name: side for name, side in sides.items() if side}


def folder_note(sides: Mapping[str, str]) -> str:
    """Return what `sides_by_folder` found in one clause."""
    held_out = [name for name, side in sides.items() if side == HELD_OUT]
    return f"folders named train, val or test decide the split: {count_videos(held_out)} held out"


def _group_note(names: Sequence[str], groups: Mapping[str, str], patients: Mapping[str, str]) -> str:
    """Return how many groups `data.group` finds, and the videos without a patient, in one clause."""
    count = len({groups[name] for name in names if name in groups})
    note = f"data.group: {count} group{'s' * (count != 1)} in {len(names)} videos"
    alone = [name for name in names if name not in groups and patients.get(name, name) == name]
    stand = "stands" if len(alone) == 1 else "stand"
    return f"{note}; {count_videos(alone)} without a group {stand} alone" if alone else note


def read_groups(group: str | None, names: Sequence[str], *, known: Sequence[str] = ()) -> dict[str, str]:
    """Return the patient of every video that has one, by `data.group`.

    None: no groups. "folder": the folder that contains the video. A name that ends in .csv: a table with the
    columns `file` and `patient`. Anything else is a regular expression with one group, searched for in the
    video's path below the data folder; what the group matches is the patient.

    Raises `BadInput`: a CSV that `read_video_table` refuses or that lists a video for two patients, a pattern
    that matches no video.
    """
    if group is None:
        return {}
    if group == FOLDER:
        folders = {name: PurePosixPath(name).parent.as_posix() for name in names}
        return {name: folder for name, folder in folders.items() if folder != "."}
    if group.lower().endswith(".csv"):
        rows = read_video_table(group, "patient", ("patient",), sorted({*names, *known}))
        patients: dict[str, str] = {}
        for number, name, row in rows:
            if row["patient"] and patients.setdefault(name, row["patient"]) != row["patient"]:
                raise BadInput(f"{group}, line {number}: '{row['file']}' is listed for two patients.")
        return patients
    matches = {name: re.search(group, name) for name in names}
    patients = {name: match[1] for name, match in matches.items() if match and match[1]}
    if not patients and names:
        raise BadInput(f"data.group is {group}, but that matches no video's path, such as '{names[0]}'.")
    return patients


def count_videos(names: Iterable[str]) -> str:
    """Return "1 video (NAME)" or "N videos (NAME, ...)", with the first three names in alphabetical order."""
    names = sorted(names)
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} video{'s' * (len(names) != 1)} ({', '.join(names[:3])}{more})"


def merge_groups(members: Iterable[Member], groups: Iterable[Sequence[Member]]) -> list[list[Member]]:
    """Return `members` in lists; those of one of `groups`, or of groups that overlap, share a list."""
    leaders = {member: member for member in members}

    def leader(member: Member) -> Member:
        while leaders[member] != member:
            leaders[member] = member = leaders[leaders[member]]
        return member

    for group in groups:
        for member in group[1:]:
            leaders[leader(member)] = leader(group[0])
    parts: defaultdict[Member, list[Member]] = defaultdict(list)
    for member in leaders:
        parts[leader(member)].append(member)
    return list(parts.values())


def _units(
    names: Sequence[str], groups: Sequence[Mapping[str, str]], copies: Iterable[Sequence[str]]
) -> dict[str, str]:
    """Return the unit of every video: its shortest patient's name, without a patient its shortest name."""
    together: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    for number, group in enumerate(groups):
        for name in names:
            if name in group:
                together[number, group[name]].append(name)
    known = set(names)
    alike = ([name for name in videos if name in known] for videos in copies)
    units: dict[str, str] = {}
    for members in merge_groups(names, [*together.values(), *alike]):
        patients = {group[name] for group in groups for name in members if name in group}
        units |= dict.fromkeys(members, min(patients or members, key=lambda key: (len(key), key)))
    return units


def split_by_video(names: Sequence[str], holdout: float, seed: int) -> dict[str, str]:
    """Return "train" or "held-out" for every video name; about the part `holdout` of them is held out.

    At least one is held out if there are two or more and `holdout` is not 0. The choice hangs on the names
    and the seed alone, so a video that joins the folder moves few others.
    """
    if not 0 <= holdout < 1:
        raise BadInput(f"holdout is {holdout}, but the part held out must be at least 0 and less than 1.")
    held_out = set(sorted(names, key=lambda name: _rank(name, seed))[: _held_out_count(len(names), holdout)])
    return {name: HELD_OUT if name in held_out else TRAIN for name in names}


def split_by_csv(
    csv_path: str | Path, names: Sequence[str], holdout: float, seed: int, *, known: Sequence[str] = ()
) -> dict[str, str]:
    """Return the split in a CSV, for those of `names` that it lists; the others are left out.

    The columns are `file` and `split` (train or held-out), or `file`, `patient` and perhaps `split`. Without
    `split`, patients are drawn for holding out as `split_by_video` draws videos. A file is named by its path
    below the data folder, or by its bare name with or without ending where that is unique. `known` are
    further videos that exist but cannot be used: naming them is no error.

    Raises `BadInput` with one sentence: no such file or column, a file that is not in the folder, an unknown
    word, a file listed twice differently, a patient on both sides.
    """
    csv_path = Path(csv_path)
    patients, splits = _read_split_csv(csv_path, [*names, *known])
    if not splits:
        splits = split_by_video(sorted(set(patients.values())), holdout, seed)
    unlisted = [name for name in names if name not in patients]
    if unlisted:
        log.warning("left out %d videos that %s does not list: %s ...", len(unlisted), csv_path, unlisted[0])
    return {name: splits[patients[name]] for name in names if name in patients}


def _read_split_csv(csv_path: Path, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the patient of every video listed (its own name without one) and each patient's side, if any."""
    rows = read_video_table(csv_path, "split", ("split", "patient"), names)
    patients: dict[str, str] = {}
    splits: dict[str, str] = {}
    for number, name, row in rows:
        patient = row.get("patient") or name
        if patients.setdefault(name, patient) != patient:
            raise BadInput(f"{csv_path}, line {number}: '{row['file']}' is listed for two patients.")
        if "split" not in row:
            continue
        split = SPLIT_WORDS.get(row["split"].lower())
        if split is None:
            raise BadInput(f"{csv_path}, line {number}: split '{row['split']}' must be train or held-out.")
        if splits.setdefault(patient, split) != split:
            raise BadInput(f"{csv_path}, line {number}: '{patient}' is both in train and in held-out.")
    return patients, splits


def _held_out_count(videos: int, holdout: float) -> int:
    if holdout == 0 or videos < 2:
        return 0
    return min(max(1, round(holdout * videos)), videos - 1)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
