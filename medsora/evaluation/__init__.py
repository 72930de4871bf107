"""Reproducible evaluation of generated clips. Start at `run.py`.

In `features`, `clip_set` chooses the clips and `extraction` turns each into features on disk; a measure
(`metrics`) turns the features of two sets into metrics, which `report` writes with their whole protocol.
`compare` does so for several generated sets at once.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EvaluationSettings", "evaluate"]


def __getattr__(name: str) -> Any:  # loads on first use: `motion` alone must not import everything
    if name in __all__:
        from medsora.evaluation import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
