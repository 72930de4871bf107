"""Being asked to stop (Ctrl-C, SIGTERM, a time limit): finish the step, save, leave with status 75."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from medsora.errors import STOP_SIGNALS

ONE_WISH_S = 1.0  # a terminal's Ctrl-C reaches a process twice: directly and through its launcher
BYTES_SAVED_PER_S = 100e6  # a guess for the first checkpoint; the next ones are measured


class StopRequest:
    """Remembers that somebody asked the run to stop; used as a context around a training loop.

    A second Ctrl-C is not caught again, so that an impatient user can still leave at once. A time limit is
    kept: the run leaves when one more step and the checkpoint would not fit any more.
    """

    def __init__(self, time_limit_minutes: float | None = None) -> None:
        self.deadline = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
        self.reason: str | None = None
        self._asked_at = 0.0
        self._step_began: float | None = None
        self._step_s = self._save_s = 0.0

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._asked_at = f"received {signal.Signals(number).name}", now
        elif now - self._asked_at > ONE_WISH_S:
            for each, handler in self._before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    def expect_checkpoint(self, size_bytes: int) -> None:
        """Reserve time for writing `size_bytes` before any checkpoint was written."""
        self._save_s = size_bytes / BYTES_SAVED_PER_S

    def begin_step(self) -> None:
        """Note that a step begins; the longest one is what must still fit before the time limit."""
        self._step_began = time.monotonic()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long a checkpoint takes."""
        began = time.monotonic()
        yield
        self._save_s = time.monotonic() - began

    def why(self) -> str:
        """Return the reason for a sentence; it may be known to another process only."""
        return self.reason or "another process was asked to stop"

    def wanted(self) -> bool:
        """Return whether this process was asked to stop, or another step and a save exceed its time."""
        now = time.monotonic()
        if self._step_began is not None:
            self._step_s = max(self._step_s, now - self._step_began)
            self._step_began = None
        if (
            self.reason is None
            and self.deadline is not None
            and now + self._step_s + self._save_s >= self.deadline
        ):
            self.reason = "the time limit is reached"
        return self.reason is not None


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return each flag's logical or over all processes, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(value) for value in accelerator.reduce(mine, reduction="sum").tolist()]
