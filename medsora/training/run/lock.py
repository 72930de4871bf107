"""One run folder, one run: what a killed launcher left running must not write where its successor writes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import time
from pathlib import Path
from typing import TextIO

from medsora.errors import BadInput

log = logging.getLogger(__name__)

LOCK = "lock.txt"
PATIENCE_S = 10.0  # a process that was told to end may need a moment


def hold_folder(folder: Path, patience_s: float = PATIENCE_S) -> TextIO:
    """Take `folder` for this process until the returned file is closed or the process ends, however it ends.

    Raises `BadInput` naming the holder if another process keeps it for longer than `patience_s` seconds. A
    file system without locks is only warned of.
    """
    file = (folder / LOCK).open("a+", encoding="utf-8")
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s cannot be locked (%s): see to it that only one run uses it.", folder, error)
                return file
            if time.monotonic() > give_up:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise BadInput(
                    f"{folder} is in use by {holder}; wait until that run ends or stop it, or take another "
                    "run.name."
                ) from None
            time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file
