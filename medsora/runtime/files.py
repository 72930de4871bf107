"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; on success it becomes `path`, on any error it is removed.

    Missing parent folders are made. Raises `OSError` with one sentence if the place cannot be written.
    """
    beside = name_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    """Write UTF-8 as `written_beside` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int = 1, **options: Any) -> None:
    """Write JSON as `written_beside` does; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options))


def obey_umask(path: Path) -> None:
    """Give a file the rights of any new one, if only its owner has some: so safetensors leaves its files."""
    if stat.S_IMODE(path.stat().st_mode) == 0o600:
        new = name_beside(path)
        new.touch()  # asking for the umask itself would change it for a moment, in all threads
        path.chmod(stat.S_IMODE(new.stat().st_mode))
        new.unlink()


def name_beside(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has, on whatever machine: process numbers repeat."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
