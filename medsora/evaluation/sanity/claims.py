"""Claims about a measurement, and whether they pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One thing that must hold, as a sentence with its numbers, and whether it does."""

    sentence: str
    holds: bool

    def __str__(self) -> str:
        return f"{'Holds' if self.holds else 'DOES NOT HOLD'}: {self.sentence}"
