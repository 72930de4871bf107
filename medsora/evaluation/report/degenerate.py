"""Sets for which scores are meaningless: black or empty clips, copies of real ones, one clip repeated."""

from __future__ import annotations

import numpy as np

from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.pixel import black, featureless

SMALL = "pixel for pixel: the distances come out too small"


def degenerate(real: ClipSet, fake: ClipSet, of_real: Features, of_fake: Features) -> list[str]:
    """Return a sentence for each of these; `of_real`, `of_fake` are `PixelExtractor`'s features."""
    sentences = []
    shows_something = {}
    for name, clips, features in ((real.reference, real, of_real), ("generated", fake, of_fake)):
        dark = black(features)
        flat = featureless(features) & ~dark
        sentences += _sentence(dark.sum(), clips, name, "is black", "are black")
        what = "of one colour or without any detail"
        sentences += _sentence(flat.sum(), clips, name, f"is {what}", f"are {what}")
        shows_something[name] = ~(dark | flat)
        first = _first_alike(features, features)
        maybe = np.flatnonzero((first < np.arange(len(clips))) & shows_something[name])
        repeated = sum(_same_pixels(clips, i, clips, first[i]) for i in maybe)
        if repeated and repeated == len(clips) - 1:
            sentences.append(f"all {len(clips)} {name} clips are the same clip.")
        else:
            what = "another one pixel for pixel"
            sentences += _sentence(repeated, clips, name, f"repeats {what}", f"repeat {what}")
    return _copies(real, fake, of_real, of_fake, shows_something["generated"]) + sentences


def _copies(
    real: ClipSet, fake: ClipSet, of_real: Features, of_fake: Features, shows_something: np.ndarray
) -> list[str]:
    if real.root.resolve() == fake.root.resolve():
        return [
            f"the {real.reference} and the generated folder are the same: every distance is zero or means "
            "nothing."
        ]
    digests = set(real.source_digests.values())
    same = sum(digest in digests for digest in fake.source_digests.values())
    if same:
        files = "1 file is" if same == 1 else f"{same} files are"
        return [f"{files} byte for byte on both sides: the distances come out too small."]
    twin = _first_alike(of_fake, of_real)
    maybe = np.flatnonzero((twin >= 0) & shows_something)
    copies = sum(_same_pixels(fake, i, real, twin[i]) for i in maybe)
    one, many = f"is a {real.reference} clip, {SMALL}", f"are {real.reference} clips, {SMALL}"
    sentences = _sentence(copies, fake, "generated", one, many)
    if sentences or not (shared := fake.shared_with(real)):
        return sentences
    (generated, other), *more = shared.items()
    files = "1 generated file shows" if not more else f"{len(shared)} generated files show"
    return [
        f"{files} what a {real.reference} one shows, re-encoded (the first: {generated}, as {other}): the "
        "distances come out too small."
    ]


def _first_alike(features: Features, among: Features) -> np.ndarray:
    """Return for each clip the number of the first one of `among` with equal features, -1 without one."""
    numbers: dict[bytes, int] = {}
    for number, row in enumerate(among.per_clip()):
        numbers.setdefault(row.tobytes(), number)
    return np.array([numbers.get(row.tobytes(), -1) for row in features.per_clip()])


def _same_pixels(clips: ClipSet, index: int, others: ClipSet, other: int) -> bool:
    """Compare two clips: mirrored or reordered frames have equal features, too."""
    return np.array_equal(clips.read(int(index)), others.read(int(other)))


def _sentence(count: int, clips: ClipSet, name: str, one: str, many: str) -> list[str]:
    """Return that `count` of the clips are so, as one sentence; nothing for none."""
    if not count:
        return []
    who = f"all {count}" if count == len(clips) else f"{count} of {len(clips)}"
    return [f"{who} {name} clips {one if count == 1 else many}."]
