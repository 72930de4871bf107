"""A dataset of a folder's clips in one call."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from medsora.data.clips import ClipDataset, ClipSpec

OF_SPEC = {field.name for field in fields(ClipSpec)}


def clip_dataset(root: Path, *, check_cache: Path | None = None, **options: Any) -> ClipDataset:
    """Check `root` and open its clips; `options` are those of `ClipSpec` and `ClipDataset`."""
    spec = ClipSpec(**{name: value for name, value in options.items() if name in OF_SPEC})
    others = {name: value for name, value in options.items() if name not in OF_SPEC}
    return ClipDataset(spec.check(root, check_cache), spec, **others)
