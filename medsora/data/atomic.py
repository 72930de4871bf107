"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        os.replace(beside, path)
    except (OSError, av.FFmpegError) as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def name_beside(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has, on whatever machine: process numbers repeat."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
