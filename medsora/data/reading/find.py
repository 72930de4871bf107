"""Finding the videos below a folder: files by their suffix, and the recordings among pictures."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsora.data.reading.decoding import DICOM_SUFFIXES, is_dicom
from medsora.data.reading.frame_folder import IMAGE_SUFFIXES
from medsora.data.reading.picture_names import (
    FRAME_NAME,
    MASK_NAME,
    MIN_NAMED_ALIKE,
    LeftOut,
    Recording,
    core,
    has_word,
    natural_key,
    sort_pictures,
)
from medsora.data.sheet import is_drawn
from medsora.errors import BadInput

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".264", ".265", ".apng", ".asf", ".av1", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob",
    ".webm", ".wmv", ".y4m",
))
# fmt: on


@dataclass(frozen=True)
class Source:
    """One video: a file, or the `recording` that pictures of a folder are.

    `name` is its path below the root, with forward slashes: the folder's if all its pictures are one
    recording, else that of the pattern of its pictures' names. `folder_name` is always the folder's.
    """

    path: Path
    name: str
    recording: Recording | None = None
    folder_name: str | None = None

    @property
    def whole_name(self) -> str:
        """The name as if all pictures of a folder were one video, as they were in earlier versions."""
        return self.folder_name or self.name

    @property
    def pictures(self) -> tuple[str, ...] | None:
        """The names of a recording's pictures, in order; None of a file."""
        return self.recording.pictures if self.recording else None


@dataclass(frozen=True)
class FoundSources:
    """Everything that `find_sources` found.

    Videos, folders that are left out and why, files of other kinds, pictures that are no frames.
    """

    sources: list[Source]
    unlisted: dict[str, str]
    other_files: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def find_sources(root: str | Path) -> FoundSources:
    """Return every video below `root`, at any depth, in natural order of their names; `root` may be one file.

    Links are followed, a folder that is reached twice is entered once, hidden names are left out. A file
    counts by its ending, whatever it holds; DICOM files, which often have none, count as videos that cannot
    be read. Raises `BadInput` if there is no such folder.
    """
    root = Path(root)
    if root.is_file():
        return FoundSources([Source(root, root.name)], {}, ())
    if not root.is_dir():
        raise BadInput(f"there is no folder {root}; give the folder that holds the videos.")
    sources: list[Source] = []
    unlisted: dict[str, str] = {}
    other_files: list[str] = []
    pictures: dict[Path, list[str]] = {}
    videos: defaultdict[Path, list[str]] = defaultdict(list)
    entered: dict[tuple[int, int], Path] = {}  # by device and inode

    def note_unlisted(error: OSError) -> None:
        unlisted[_name(Path(error.filename), root)] = error.strerror or str(error)

    for folder_name, subfolders, files in os.walk(root, followlinks=True, onerror=note_unlisted):
        folder = Path(folder_name)
        status = folder.stat()
        first = entered.setdefault((status.st_dev, status.st_ino), folder)
        if first is not folder:
            unlisted[_name(folder, root)] = f"the same folder as {_name(first, root)}, by a link"
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith(".") or is_drawn(name):
                continue
            if suffix in VIDEO_SUFFIXES or (suffix not in IMAGE_SUFFIXES and _is_dicom(folder / name)):
                sources.append(Source(folder / name, _name(folder / name, root)))
                videos[folder].append(name)
            elif suffix in IMAGE_SUFFIXES:
                pictures.setdefault(folder, []).append(name)
            else:
                other_files.append(_name(folder / name, root))
    left_out: list[LeftOut] = []
    masks = _mask_folders({folder.relative_to(root).parts: names for folder, names in pictures.items()})
    for folder, names in pictures.items():
        name, parts = _name(folder, root), folder.relative_to(root).parts
        if (frames := masks.get(parts)) is not None:
            first = min(names, key=natural_key)
            left_out.append(LeftOut(name, "masks", len(names), first, _name(root.joinpath(*frames), root)))
            continue
        sorting = sort_pictures(names, videos.get(folder, ()))
        kinds = {
            "masks": sorting.masks,
            "posters or thumbnails": sorting.posters,
            "other pictures": sorting.strays,
        }
        left_out += [LeftOut(name, kind, len(some), some[0]) for kind, some in kinds.items() if some]
        for pattern, recording in sorting.recordings.items():
            named = replace(recording, named_as_masks=recording.named_as_masks or parts in masks)
            own = name if len(sorting.recordings) == 1 else _name(folder / pattern, root)
            sources.append(Source(folder, own, named, name))
    sources.sort(key=lambda source: (natural_key(source.name), source.name))
    return FoundSources(sources, unlisted, tuple(sorted(other_files)), tuple(left_out))


def _mask_folders(
    folders: Mapping[tuple[str, ...], Sequence[str]],
) -> dict[tuple[str, ...], tuple[str, ...] | None]:
    """Return the folders that are called masks, by their parts, and the folder of the frames of each if sure.

    This is a folder beside them that is called frames, or the one that they lie in, with pictures of the same
    names. Others may be labels' folders: their pictures decide.
    """
    called = {
        parts: [i for i, part in enumerate(parts) if has_word(part, MASK_NAME)]
        for parts in folders
        if any(has_word(part, MASK_NAME) for part in parts)
    }
    beside: defaultdict[tuple, list[tuple[str, ...]]] = defaultdict(list)  # by all parts but one
    for parts in folders.keys() - called.keys() if called else ():
        for i in range(len(parts)):
            if has_word(parts[i], FRAME_NAME):
                beside[i, parts[:i] + parts[i + 1 :]].append(parts)

    def frames_of(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for i in called[parts]:
            without = parts[:i] + parts[i + 1 :]
            yield from ([without] if without in folders and without not in called else [])
            yield from beside.get((i, without), ())
            yield from beside.get((i, parts[:i]), ())

    frame_folders: dict[tuple[str, ...], tuple[str, ...] | None] = {}
    for parts in called:
        cores = {core(name) for name in folders[parts]}
        candidates = {frames: {core(name) for name in folders[frames]} & cores for frames in frames_of(parts)}
        sure = [frames for frames, same in candidates.items() if len(same) >= MIN_NAMED_ALIKE * len(cores)]
        frame_folders[parts] = sure[0] if sure else None
    return frame_folders


def _is_dicom(path: Path) -> bool:
    """Return whether `path` is DICOM; only the names of DICOM files (`.dcm`, none, numbers) are opened."""
    suffix = path.suffix.lower()
    return (suffix in DICOM_SUFFIXES or not suffix or suffix[1:].isdigit()) and is_dicom(path)


def _name(path: Path, root: Path) -> str:
    return root.name or str(root) if path == root else path.relative_to(root).as_posix()
