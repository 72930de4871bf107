"""What counts as a video below a folder: files by their ending, and folders that hold pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medsora.data.reading.decoding import DICOM_SUFFIXES, is_dicom
from medsora.data.reading.frame_folder import IMAGE_SUFFIXES, natural_key
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
    """One video: a file, or a folder of pictures. `name` is its path below the root, with forward slashes."""

    path: Path
    name: str
    is_folder: bool


@dataclass(frozen=True)
class FoundSources:
    """Everything that `find_sources` met: videos, folders that could not be listed, files of other kinds."""

    sources: list[Source]
    unlisted: dict[str, str]
    other_files: int


def find_sources(root: str | Path) -> FoundSources:
    """Return every video below `root`, at any depth, in natural order of their names; `root` may be one file.

    Links are followed, loops of links entered once, hidden names left out. A file counts by its ending,
    whatever it holds; DICOM files, which often have none, count as videos that cannot be read. Raises
    `BadInput` if there is no such folder.
    """
    root = Path(root)
    if root.is_file():
        return FoundSources([Source(root, root.name, False)], {}, 0)
    if not root.is_dir():
        raise BadInput(f"there is no folder {root}; give the folder that holds the videos.")
    sources: list[Source] = []
    unlisted: dict[str, str] = {}
    other_files = 0
    entered: set[tuple[int, int]] = set()

    def note_unlisted(error: OSError) -> None:
        unlisted[_name(Path(error.filename), root)] = error.strerror or str(error)

    for folder_name, subfolders, files in os.walk(root, followlinks=True, onerror=note_unlisted):
        folder = Path(folder_name)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        pictures = 0
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith(".") or is_drawn(name):
                continue
            if suffix in VIDEO_SUFFIXES or (suffix not in IMAGE_SUFFIXES and _is_dicom(folder / name)):
                sources.append(Source(folder / name, _name(folder / name, root), False))
            elif suffix in IMAGE_SUFFIXES:
                pictures += 1
            else:
                other_files += 1
        if pictures:
            sources.append(Source(folder, _name(folder, root), True))
    sources.sort(key=lambda source: (natural_key(source.name), source.name))
    return FoundSources(sources, unlisted, other_files)


def _is_dicom(path: Path) -> bool:
    """Return whether `path` is DICOM; only the names of DICOM files (`.dcm`, none, numbers) are opened."""
    suffix = path.suffix.lower()
    return (suffix in DICOM_SUFFIXES or not suffix or suffix[1:].isdigit()) and is_dicom(path)


def _name(path: Path, root: Path) -> str:
    return root.name or str(root) if path == root else path.relative_to(root).as_posix()
