"""Files that are complete or absent: written beside their place, then renamed into it; read patiently."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import av
from safetensors import SafetensorError

from medsora.errors import BadInput

Result = TypeVar("Result")

END_MARK = "<!-- the end of what it writes -->"  # ends the part of a page that a command writes
PAUSES_S = (0.1, 0.5, 2.0)  # pauses before the retries of a failed read
BESIDE = re.compile(r"\..+\.[0-9a-f]{12}(\.\w+)?")  # the names of `name_beside`
LEFT_AFTER_S = 3600.0
PATH_ERRORS = (  # errors of the path itself, which no retry mends
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def read_patiently(read: Callable[[Path], Result], path: Path) -> Result:
    """Return `read(path)`, retrying for a few seconds if the system refuses it.

    A file server may be unreachable or descriptors may run out without any damage to the file. Raises
    `BadInput` if all retries fail, so that no caller takes the file for damaged or missing; `OSError` if
    there is no such path.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return read(path)
        except OSError as error:
            if error.errno in PATH_ERRORS:
                raise
            if pause_s is None:
                raise BadInput(
                    f"{error.filename or path} cannot be read ({error.strerror or error}); it may be intact "
                    "and nothing was changed. Check the disk, its server and the permissions, then run the "
                    "same command again."
                ) from error
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def is_file(path: Path) -> bool:
    """Return whether a file exists; raises `BadInput` if that cannot be determined."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; raises `BadInput` if that cannot be determined."""
    return stat.S_ISDIR(_mode(path))


def make_folder(path: Path) -> None:
    """Make a folder and its parents unless it exists, which the system may deny for a moment.

    Raises `OSError` if it cannot be made, `BadInput` as `is_folder` does.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not is_folder(path):
            raise


def _mode(path: Path) -> int:
    """Return type and rights of a file or folder, 0 if there is none."""
    try:
        return read_patiently(Path.stat, path).st_mode
    except OSError:
        return 0


def files_below(folder: Path) -> list[Path]:
    """Return all files in `folder` and its sub-folders, sorted; raises as `read_patiently` does."""
    return sorted(Path(place, name) for place, _, names in _walk(folder) for name in names)


def _walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """Return `os.walk(folder)`, which unlike `rglob` never leaves out a folder that cannot be listed now."""

    def refuse(error: OSError) -> None:
        raise error

    return read_patiently(lambda root: list(os.walk(root, onerror=refuse)), folder)


def nearest_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path`, on an error it is removed.

    Missing parent folders are made. Raises `OSError` with one sentence if the place cannot be written.
    """
    beside = name_beside(path)
    try:
        make_folder(path.parent)
        yield beside
        obey_umask(beside)
        os.replace(beside, path)
    except (OSError, av.FFmpegError) as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `written_beside` does."""
    with written_beside(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as `written_beside` does, with the bytes of files' names that are not as they are."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Any, *, indent: int = 1, **options: Any) -> None:
    """Write JSON as `written_beside` does; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options))


def obey_umask(path: Path) -> None:
    """Apply the umask to a file of mode 0600, which safetensors gives its files whatever the umask is."""
    if stat.S_IMODE(read_patiently(Path.stat, path).st_mode) == 0o600:
        new = name_beside(path)
        new.touch()  # asking for the umask itself would change it for a moment, in all threads
        path.chmod(stat.S_IMODE(read_patiently(Path.stat, new).st_mode))
        new.unlink()


def name_beside(path: Path) -> Path:
    """Return a hidden path beside `path`; random, because process numbers repeat on other machines."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")


def remove_leftovers(folder: Path, below: str | None = None) -> None:
    """Remove what killed processes left in `folder` and its sub-folders `below` (a pattern).

    These are names of `name_beside`. What changed within `LEFT_AFTER_S` seconds stays: another process may be
    writing it.
    """
    with suppress(OSError):
        inside = folder.glob(f"{below}/.*") if below else ()
        for path in (*folder.glob(".*"), *inside):
            if BESIDE.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFT_AFTER_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def written_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final` to write to; flushed to the disk, it replaces `final`.

    Raises `BadInput` if the disk refuses; an existing file then stays unchanged.
    """
    working, dropped = (final.with_name(f".{what}-{final.name}") for what in ("writing", "dropping"))
    try:
        for left in (working, dropped):
            if _mode(left):
                shutil.rmtree(left)
        working.mkdir(parents=True)
        yield working
        for place, _, names in _walk(working):
            for path in (Path(place, name) for name in names):
                obey_umask(path)
                _flush(path)
            _flush(Path(place))
        if replaces := bool(_mode(final)):
            final.rename(dropped)  # a deletion may fail half-way
        try:
            working.rename(final)
        except OSError:
            if replaces:
                dropped.rename(final)
            raise
        _flush(final.parent)
        if replaces:
            shutil.rmtree(dropped, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors does not raise `OSError` on a full disk
        shutil.rmtree(working, ignore_errors=True)
        raise BadInput(
            f"{final} cannot be written ({getattr(error, 'strerror', None) or error}); what was there before "
            "is untouched, so make room and run the same command again."
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_between_marks(page: Path, begin: str, lines: Sequence[str]) -> None:
    """Replace what stands on a page between the mark `begin` and the next `END_MARK`, as `around_marks`."""
    head, tail = around_marks(page, begin)
    write_text(page, head + "\n".join([begin, *lines, END_MARK]) + tail)


def around_marks(page: Path, begin: str) -> tuple[str, str]:
    """Return what stands on a page before the mark `begin` and after the next `END_MARK`.

    Raises `BadInput` if they are not there, `OSError` if the page cannot be read.
    """
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, end_mark, tail = rest.partition(END_MARK)
    if not end_mark:
        raise BadInput(f"{page}: the marks {begin!r} and {END_MARK!r} are not there; put them back.")
    return head, tail
