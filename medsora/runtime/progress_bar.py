"""The progress bar of all commands: it moves on a terminal, and writes few, complete lines to a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

QUIET_INTERVAL_S = 15  # between lines when the output is no terminal


def progress_bar(
    title: str, items: Iterable[Any] | None = None, *, unit: str, show: bool = True, **options: Any
) -> tqdm:
    """Return a tqdm bar on stderr, over `items` if there are any; `options` (total, initial) are tqdm's.

    Where stderr is no terminal, every state shown is a line of its own, at most one in QUIET_INTERVAL_S.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=title,
        unit=unit,
        disable=not show,
        file=sys.stderr if on_terminal else _Lines(sys.stderr),
        mininterval=0.5 if on_terminal else QUIET_INTERVAL_S,
        maxinterval=10 if on_terminal else 2 * QUIET_INTERVAL_S,
        dynamic_ncols=on_terminal,
        ascii=not on_terminal,
        **options,
    )


class _Lines:
    """A stream that writes each state of a tqdm bar as a line of its own, without carriage returns."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()
