"""Being asked to stop (Ctrl-C, SIGTERM, a time limit): finish the step, save, leave with status 75."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from medsora.runtime.exit import STOP_SIGNALS

ONE_WISH_S = 1.0  # a terminal's Ctrl-C reaches a process twice: directly and through its launcher
TIME_IS_OVER = "the time limit is reached"
BYTES_SAVED_PER_S = 100e6  # a guess for the first checkpoint; the next ones are measured


class StopRequest:
    """Remembers that somebody asked the run to stop; used as a context around a training loop.

    A second Ctrl-C is not caught again, so that an impatient user can still leave at once. A time limit is
    kept: the run leaves when what may come before it is asked again, and the checkpoint, would not fit any
    more: a checkpoint that is due, an evaluation and a step, each as long as the longest so far.
    """

    def __init__(self, time_limit_minutes: float | None = None) -> None:
        self.deadline = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
        self.reason: str | None = None
        self._asked_at = 0.0
        self._asked_last: float | None = None
        self._step_began: float | None = None
        self._step_s = self._between_s = self._save_s = 0.0
        self._late_steps = 0

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Leave by `KeyboardInterrupt`, as Ctrl-C does then, if the time is over before there is a step."""
        if self.deadline is None:
            yield
            return
        if (left_s := self.deadline - time.monotonic()) <= 0:
            raise KeyboardInterrupt(TIME_IS_OVER)
        before = signal.signal(signal.SIGALRM, _time_is_over)
        try:
            signal.setitimer(signal.ITIMER_REAL, left_s)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def __enter__(self) -> StopRequest:
        self._asked_last = time.monotonic()
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
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

    def expect_answers_late(self, steps: int) -> None:
        """Reserve time for as many more steps, after which all processes know that one must stop."""
        self._late_steps = steps

    def begin_step(self) -> None:
        """Note that a step begins, and how long saving and looking between the steps took."""
        self._step_began = time.monotonic()
        if self._asked_last is not None:
            self._between_s = max(self._between_s, self._step_began - self._asked_last)

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
        """Return whether this process was asked to stop, or its time would be over when it is asked again."""
        now = self._asked_last = time.monotonic()
        if self._step_began is not None:
            self._step_s = max(self._step_s, now - self._step_began)
            self._step_began = None
        still_to_come = self._between_s + (1 + self._late_steps) * self._step_s + self._save_s
        if self.reason is None and self.deadline is not None and now + still_to_come >= self.deadline:
            self.reason = TIME_IS_OVER
        return self.reason is not None


def _time_is_over(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(TIME_IS_OVER)


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return each flag's logical or over all processes, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(value) for value in accelerator.reduce(mine, reduction="sum").tolist()]
