"""Stop requests (Ctrl-C, SIGTERM, a time limit): finish the step, save, exit with status 75."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from medsora.runtime.exit import STOP_SIGNALS

SAME_SIGNAL_S = 1.0  # a terminal's Ctrl-C reaches a process twice: directly and through its launcher
TIME_LIMIT_REACHED = "the time limit is reached"
BYTES_SAVED_PER_S = 100e6  # a guess for the first checkpoint; the next ones are measured


class StopRequest:
    """Records stop signals and a time limit; used as a context around a training loop.

    A second Ctrl-C ends the program at once. The run stops before its time limit if the next step, the
    evaluation and checkpoint due before it, and the final checkpoint would no longer fit, each assumed to
    take as long as the longest so far.
    """

    def __init__(self, time_limit_minutes: float | None = None) -> None:
        self.deadline = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
        self.reason: str | None = None
        self._signal_at = 0.0
        self._checked_last: float | None = None
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
            raise KeyboardInterrupt(TIME_LIMIT_REACHED)
        before = signal.signal(signal.SIGALRM, _end_by_time_limit)
        try:
            signal.setitimer(signal.ITIMER_REAL, left_s)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def __enter__(self) -> StopRequest:
        self._checked_last = time.monotonic()
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._signal_at = f"received {signal.Signals(number).name}", now
        elif now - self._signal_at > SAME_SIGNAL_S:
            for each, handler in self._before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    def expect_checkpoint(self, size_bytes: int) -> None:
        """Reserve time for writing `size_bytes` before any checkpoint was written."""
        self._save_s = size_bytes / BYTES_SAVED_PER_S

    def expect_answers_late(self, steps: int) -> None:
        """Reserve time for `steps` more steps, the delay until all processes receive a stop request."""
        self._late_steps = steps

    def begin_step(self) -> None:
        """Record that a step begins, and how long saving and evaluation between the steps took."""
        self._step_began = time.monotonic()
        if self._checked_last is not None:
            self._between_s = max(self._between_s, self._step_began - self._checked_last)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long a checkpoint takes."""
        began = time.monotonic()
        yield
        self._save_s = time.monotonic() - began

    def why(self) -> str:
        """Return the reason for a message; it may belong to another process."""
        return self.reason or "another process received a stop request"

    def wanted(self) -> bool:
        """Return whether this process must stop: after a signal, or before its time limit passes."""
        now = self._checked_last = time.monotonic()
        if self._step_began is not None:
            self._step_s = max(self._step_s, now - self._step_began)
            self._step_began = None
        still_to_come = self._between_s + (1 + self._late_steps) * self._step_s + self._save_s
        if self.reason is None and self.deadline is not None and now + still_to_come >= self.deadline:
            self.reason = TIME_LIMIT_REACHED
        return self.reason is not None


def _end_by_time_limit(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(TIME_LIMIT_REACHED)


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return each flag's logical or over all processes, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(value) for value in accelerator.reduce(mine, reduction="sum").tolist()]
