"""A file system that refuses reads, as an NFS server that is away or a process short of descriptors does."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from medsora.denoiser import weights
from medsora.runtime import files
from medsora.saved import optimizer

ERRORS = (errno.ESTALE, errno.EMFILE, errno.EIO, errno.EACCES, errno.ETIMEDOUT)
READS = (  # what asks the system for something below a folder; safetensors opens files by itself
    (builtins, "open"),
    (io, "open"),
    (os, "stat"),
    (os, "listdir"),
    (os, "scandir"),
    (weights, "safe_open"),
    (optimizer, "load_file"),
)


class Reads:
    """Counts the reads below a folder; `times` of them, from the `first` (from 1) on, fail with `error`."""

    def __init__(self, folder: Path, error: int, first: int, times: int) -> None:
        self.folder, self.error = os.path.realpath(folder), error
        self.failing, self.count = range(first, first + times), 0

    def maybe_fail(self, path: Any, mode: Any = "r") -> None:
        """Count a read of `path`, or raise the error."""
        if not isinstance(path, str | Path) or not os.path.abspath(path).startswith(self.folder + os.sep):
            return
        if isinstance(mode, str) and set(mode) & set("wax+"):
            return
        self.count += 1
        if self.count in self.failing:
            raise OSError(self.error, os.strerror(self.error), str(path))


@contextmanager
def failing_reads(folder: Path, error: int, first: int, times: int) -> Iterator[Reads]:
    """Let reads fail for a while, without the pauses between tries."""
    reads = Reads(folder, error, first, times)

    def looking(read: Callable[..., Any]) -> Callable[..., Any]:
        def looked(path: Any, *arguments: Any, **options: Any) -> Any:
            reads.maybe_fail(path, options.get("mode", arguments[0] if arguments else "r"))
            return read(path, *arguments, **options)

        return looked

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(files, "PAUSES_S", (0, 0, 0)))
        for owner, name in READS:
            patches.enter_context(mock.patch.object(owner, name, looking(getattr(owner, name))))
        yield reads
