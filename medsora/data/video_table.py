"""CSV tables about the videos of a data folder, one row per video."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from medsora.errors import BadInput


def read_video_table(
    csv_path: str | Path, kind: str, columns: Sequence[str], names: Sequence[str]
) -> list[tuple[int, str, dict[str, str]]]:
    """Return (line number, video name, values by column) of every row, names in lower case, blanks stripped.

    The column `file` names a video by its path below the data folder, or by its bare name with or without
    ending where that is unique among `names`, a recording among pictures also by the prefix of their names;
    one of `columns` must be there too; if only one is requested, lines `name.mp4,value` without column names
    do as well. `kind` is what errors call the table. Bytes that are not UTF-8 name files whose names
    have the same bytes; names may differ in their Unicode form. Rows of blanks are left out.

    Raises `BadInput` with one sentence: no such file or column, no rows, a file that is not in the folder.
    """
    csv_path = Path(csv_path)
    lookup = _lookup(names)
    rows = []
    for number, row in _read_rows(csv_path, kind, columns):
        given = PurePosixPath(row["file"].replace("\\", "/")).as_posix()
        name = lookup.get(given) or lookup.get(unicodedata.normalize("NFC", given))
        if name is None:
            several = [name for name in names if given in _short_names(name)]
            why = "is not in the data folder"
            if several:
                why = f"may be {several[0]} or {several[-1]}; give the path below the data folder"
            raise BadInput(f"{csv_path}, line {number}: the file '{row['file']}' {why}.")
        rows.append((number, name, row))
    return rows


def _read_rows(csv_path: Path, kind: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        text = csv_path.read_bytes().decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise BadInput(f"{csv_path} is not UTF-8 but most likely UTF-16: save it as UTF-8.")
        file = io.StringIO(text, newline="")
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [(column or "").strip().lower() for column in reader.fieldnames or []]
        if len(header) == 2 and len(columns) == 1 and PurePosixPath(header[0]).suffix:
            file.seek(0)  # a list without column names, such as PolypDiag's: name.mp4,label
            header = ["file", *columns]
            reader = csv.DictReader(file, header, skipinitialspace=True)
        reader.fieldnames = header
        rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise BadInput(f"there is no {kind} file {csv_path}.") from None
    except (OSError, csv.Error) as error:
        raise BadInput(f"{csv_path} cannot be read as CSV ({error}).") from error
    for separator, words in {";": "';'", "\t": "tabs"}.items():
        if "file" not in header and any(separator in column for column in header):
            raise BadInput(f"{csv_path}: the columns are separated by {words}: save it with commas.")
    if "file" not in header or not set(columns) & set(header):
        raise BadInput(
            f"{csv_path} needs the columns 'file' and {' or '.join(map(repr, columns))} in its first line; "
            f"it has {', '.join(header) or 'none'}."
        )
    needed = {"file", *columns}
    if twice := sorted(column for column in needed if header.count(column) > 1):
        raise BadInput(f"{csv_path} has several columns '{twice[0]}': rename or remove all but one.")
    for number, row in rows:
        if any(value.strip() for value in row.pop(None, ())):
            raise BadInput(
                f"{csv_path}, line {number}: it has more values than columns; put a value that contains a "
                "comma between quotation marks."
            )
        if any((row[column] or "").strip().splitlines()[1:] for column in needed & row.keys()):
            raise BadInput(
                f"{csv_path}, line {number}: a value extends over several lines; close its quotation mark."
            )
    stripped = ((number, {key: (v or "").strip() for key, v in row.items() if key}) for number, row in rows)
    rows = [(number, row) for number, row in stripped if any(row.values())]
    if not rows:
        raise BadInput(f"{csv_path} lists no files.")
    return rows


def alike_note(kind: str, words: Iterable[str], what: str) -> list[str]:
    """Return one clause that names those of `words` that people would take for one, or nothing.

    `kind` is what they are, in the plural, `what` each of them makes.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(set(words)):
        visible = [c for c in unicodedata.normalize("NFKD", word) if unicodedata.category(c) != "Cf"]
        groups[" ".join("".join(visible).casefold().split())].append(word)
    several = [group for group in groups.values() if len(group) > 1]
    for group in several:
        if len({unicodedata.normalize("NFC", word) for word in group}) < len(group):  # they look the same
            group[:] = [ascii(word)[1:-1] for word in group]
    named = "; ".join(", ".join(group) for group in several)
    differ = f"{kind} that differ only in case or invisible characters"
    return [f"{differ}: {named}; each is {what} of its own: give them one name"] if several else []


def _lookup(names: Sequence[str]) -> dict[str, str]:
    """Return full path, and where unique bare name, stem and the prefix of recordings -> video name."""
    full_names: dict[str, str] = {}
    for short_names in zip(*map(_short_names, names), strict=True):
        uses = Counter(short_names)
        full_names |= {
            short: name for short, name in zip(short_names, names, strict=True) if uses[short] == 1
        }
    full_names |= {name: name for name in names}
    composed: defaultdict[str, set[str]] = defaultdict(set)  # macOS takes the letters of names apart
    for key, name in full_names.items():
        composed[unicodedata.normalize("NFC", key)].add(name)
    return {key: name for key, (name, *others) in composed.items() if not others} | full_names


def _short_names(name: str) -> tuple[str, ...]:
    """Return what a table may call a video instead of its path; where two names agree, the later counts."""
    path, prefix = PurePosixPath(name), _prefix(name)
    return PurePosixPath(prefix).name, prefix, path.stem, path.name


def _prefix(name: str) -> str:
    return name.partition("*")[0].rstrip("_-. ")
