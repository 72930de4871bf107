"""Labels of videos: the name of a video's folder, or a column of a CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medsora.data.phantom.corpus import check_labels
from medsora.data.split import SPLIT_WORDS
from medsora.data.video_table import alike_note, read_video_table
from medsora.errors import BadInput, one_line

NO_LABELS, FOLDERS = "none", "folders"


@dataclass(frozen=True)
class Labels:
    """The labels' names in the order of the embedding's rows, and each labelled video's row number.

    `notes` are for the user.
    """

    names: tuple[str, ...] = ()
    of_video: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def number(self, video: str) -> int:
        """Return the video's label as the denoiser counts it; a video without one has `len(names)`."""
        return self.of_video.get(video, len(self.names))

    def words(self, videos: Iterable[str]) -> dict[str, str]:
        """Return the labels of `videos` by name, empty for a video without one; nothing without labels."""
        return {video: (*self.names, "")[self.number(video)] for video in videos if self.names}

    def counts(self) -> str:
        """Return every label's name with its number of videos, where these are known."""
        videos = Counter(self.of_video.values())
        return ", ".join(f"{name} ({videos[k]})" if videos else name for k, name in enumerate(self.names))


def read_labels(
    source: str,
    root: str | Path,
    videos: Sequence[str],
    *,
    known: Sequence[str] = (),
    trained: Sequence[str] = (),
) -> Labels:
    """Return the labels of `videos`, which are named by their paths below `root`.

    `source` is "none"; "folders", where a video's label is the innermost folder that it lies in, apart from
    folders named after a side of the split (train, val, test); or a CSV with the columns `file` and `label`,
    looked for from here and then in `root`. Videos that the CSV does not list, or lists with an empty label,
    have none: they are trained on as if their label had been dropped. `known` are further videos that exist
    but cannot be used: naming them is no error. `trained` are the labels of the run that is resumed, in the
    order of its embedding's rows, which stays; without it the order is alphabetical.

    Raises `BadInput` with one sentence: a video outside every folder, a CSV that `read_video_table` refuses,
    a video listed with two labels, no label at all, a label that is not among `trained`, labels of a phantom
    that are damaged.
    """
    if source == NO_LABELS:
        return Labels()
    words = _from_folders(videos) if source == FOLDERS else _from_csv(source, Path(root), [*videos, *known])
    words = {video: words[video] for video in videos if words.get(video)}
    notes = alike_note("labels", words.values(), "a class")
    odd = sorted(word for word in words.values() if word.encode(errors="ignore").decode() != word)
    if odd and source != FOLDERS:
        notes.append(f"{source} is not UTF-8 (in Excel: save as CSV UTF-8); a label reads {one_line(odd[0])}")
    words = {video: one_line(word) for video, word in words.items()}
    if not words:
        raise BadInput(f"data.labels is {source}, but it gives no video a label.")
    names = tuple(sorted(set(words.values())))
    if trained:
        if unknown := [name for name in names if name not in trained]:
            raise BadInput(
                f"the run was trained with the labels {', '.join(trained)}, but {root} now has videos of "
                f"{', '.join(unknown)}; restore the old names, or take another run.name."
            )
        names = tuple(trained)
    return Labels(names, {video: names.index(word) for video, word in words.items()}, tuple(notes))


def _from_folders(videos: Sequence[str]) -> dict[str, str]:
    words = {}
    for video in videos:
        folders = [name for name in PurePosixPath(video).parent.parts if name.lower() not in SPLIT_WORDS]
        if not folders:
            raise BadInput(
                f"data.labels is folders, but '{video}' lies in no sub-folder that could be its label; sort "
                "the videos into folders, or give a CSV with the columns file and label."
            )
        words[video] = folders[-1]
    return words


def find_table(source: str, root: Path) -> Path:
    """Return the path of a CSV: relative to the working folder, else to `root`."""
    path = Path(source)
    return root / path if not path.is_file() and (root / path).is_file() else path


def _from_csv(source: str, root: Path, videos: Sequence[str]) -> dict[str, str]:
    path = find_table(source, root)
    check_labels(path)
    words: dict[str, str] = {}
    for number, video, row in read_video_table(path, "label", ("label",), videos):
        if words.setdefault(video, row["label"]) != row["label"]:
            raise BadInput(
                f"{path}, line {number}: '{row['file']}' is labelled both '{words[video]}' and "
                f"'{row['label']}', but a video has one label."
            )
    return words
