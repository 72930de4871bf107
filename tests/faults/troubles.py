"""What can happen to one process of several in the midst of its work: it dies, freezes, loses its worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil

from medsora.evaluation.features.feature_store import FeatureStore
from medsora.training.progress import Progress


def troubled(main: Callable[[int], None], rank: int, trouble: Callable[[], None]) -> Callable[[int], None]:
    """Return `main` with trouble in one process."""

    def run(own: int) -> None:
        if own == rank:
            trouble()
        main(own)

    return run


def after_a_step(happen: Callable[[], None]) -> None:
    """Let something happen in this process after every training step."""
    count = Progress.count

    def counted(self: Progress, *arguments: object) -> None:
        count(self, *arguments)
        happen()

    Progress.count = counted


def after_a_batch(happen: Callable[[], None]) -> None:
    """Let something happen in this process after every batch that an evaluation extracts."""
    write = FeatureStore.write

    def written(self: FeatureStore, *arguments: Any) -> None:
        write(self, *arguments)
        happen()

    FeatureStore.write = written


def die() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    """Stop this process: it lives but never answers again."""
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_worker() -> None:
    """End the processes that load data for this one."""
    for worker in psutil.Process().children():
        worker.kill()
