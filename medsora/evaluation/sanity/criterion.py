"""Pass criteria of a measurement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """A pass criterion: a sentence with its numbers, and whether it is met."""

    sentence: str
    met: bool

    def __str__(self) -> str:
        return f"{'Pass' if self.met else 'FAIL'}: {self.sentence}"
