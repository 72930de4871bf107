"""Being asked to stop (Ctrl-C, SIGTERM, a time limit): finish the step, save, leave with status 75."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator


class StopRequest:
    """Remembers that somebody asked the run to stop; used as a context around a training loop.

    A second Ctrl-C is not caught again, so that an impatient user can still leave at once.
    """

    def __init__(self, time_limit_minutes: float | None = None) -> None:
        self.deadline = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
        self.reason: str | None = None

    def __enter__(self) -> StopRequest:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
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
        self.reason = f"received {signal.Signals(number).name}"
        signal.signal(number, self._before[number])

    def wanted(self) -> bool:
        """Return whether this process was asked to stop or has used up its time."""
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "the time limit is reached"
        return self.reason is not None


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return each flag's logical or over all processes, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(value) for value in accelerator.reduce(mine, reduction="sum").tolist()]
