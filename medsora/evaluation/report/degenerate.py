"""Sets that no score means anything for: black or empty clips, copies of the real ones, one clip repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.pixel import black, featureless


def degenerate(real: ClipSet, fake: ClipSet, of_real: Features, of_fake: Features) -> list[str]:
    """Return a sentence for each of these; `of_real`, `of_fake` are `PixelExtractor`'s features."""
    found, empty = [], []
    for name, features in (("real", of_real), ("generated", of_fake)):
        dark = black(features)
        flat = featureless(features) & ~dark
        found += _share(dark, name, "black")
        found += _share(flat, name, "of one colour or without any detail")
        empty.append(dark | flat)
    for name, clips, features, nothing in zip(
        ("real", "generated"), (real, fake), (of_real, of_fake), empty, strict=True
    ):
        first = _first_alike(features, features)
        repeated = [
            i
            for i in np.flatnonzero((first < np.arange(len(clips))) & ~nothing)
            if np.array_equal(clips.read(int(i)), clips.read(int(first[i])))
        ]
        if repeated and len(repeated) == len(clips) - 1:
            found.append(f"all {len(clips)} {name} clips are the same clip.")
        elif repeated:
            found.append(
                f"{_of(len(repeated), len(clips), name)} repeat another {name} clip pixel for pixel."
            )
    return _copied(real, fake, of_real, of_fake, empty[1]) + found


def _copied(
    real: ClipSet, fake: ClipSet, of_real: Features, of_fake: Features, nothing: np.ndarray
) -> list[str]:
    if real.root.resolve() == fake.root.resolve():
        return ["the real and the generated folder are the same: every distance is zero or means nothing."]
    shared = len(set(real.source_digests.values()) & set(fake.source_digests.values()))
    if shared:
        files = "1 file is" if shared == 1 else f"{shared} files are"
        return [f"{files} byte for byte on both sides: the distances come out too small."]
    twin = _first_alike(of_fake, of_real)
    copies = [
        i
        for i in np.flatnonzero((twin >= 0) & ~nothing)
        if np.array_equal(fake.read(int(i)), real.read(int(twin[i])))
    ]
    if not copies:
        return []
    return [
        f"{_of(len(copies), len(fake), 'generated')} are real clips, pixel for pixel: the distances come "
        "out too small."
    ]


def _first_alike(features: Features, among: Features) -> np.ndarray:
    """Return for each clip the number of the first one of `among` with equal features, -1 without one."""
    numbers: dict[bytes, int] = {}
    for number, row in enumerate(among.per_clip()):
        numbers.setdefault(row.tobytes(), number)
    return np.array([numbers.get(row.tobytes(), -1) for row in features.per_clip()])


def _share(marked: Sequence[bool], name: str, what: str) -> list[str]:
    count = int(np.sum(marked))
    return [f"{_of(count, len(marked), name)} are {what}."] if count else []


def _of(count: int, total: int, name: str) -> str:
    return f"all {total} {name} clips" if count == total else f"{count} of {total} {name} clips"
