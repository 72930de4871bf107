"""Memorisation: the nearest training clip of every generated clip, and its distance.

The measure of "near" is the same distance for held-out real clips, which the model cannot have copied: a
generated clip nearer to the training set than 95 % of them are is marked. About 5 % are marked by chance,
more with few held-out clips, whose quantile is uncertain.
Distances are taken in two spaces, over dense training windows (a quarter of a clip apart) and both mirrored
forms of the clip, since training mirrors: *pixels* (the clip reduced to a few frames of 16x16) and *features*
(I3D's if its weights are given, else the untrained pyramid's, each divided by its spread in training).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from accelerate import PartialState

from medsora.data.sheet import contact_sheet, save_image
from medsora.errors import BadInput
from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.features.extraction import extract
from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.settings import EvaluationSettings
from medsora.runtime.processes import on_main

NEAR_QUANTILE = 0.05
SHOWN_PAIRS = 6
THUMB_SIDE, THUMB_FRAMES = 16, 4


class ThumbnailExtractor(Extractor):
    """A clip as a few small frames, and the same mirrored: two rows of numbers in 0..255."""

    width = THUMB_FRAMES * THUMB_SIDE**2 * 3
    identity = {"name": "thumbnail", "version": 1, "side": THUMB_SIDE}  # noqa: RUF012

    def rows(self, frames: int) -> int:
        """Return 2."""
        return 2

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 2, width) for uint8 (B, F, H, W, 3)."""
        picks = np.linspace(0, clips.shape[1] - 1, THUMB_FRAMES).round().astype(int)
        frames, size = clips[:, picks].reshape(-1, *clips.shape[2:]), (THUMB_SIDE, THUMB_SIDE)
        small = [cv2.resize(f.astype(np.float32), size, interpolation=cv2.INTER_AREA) for f in frames]
        small = np.stack(small).reshape(len(clips), THUMB_FRAMES, *size, 3)
        return np.stack([small, small[..., ::-1, :]], 1).reshape(len(clips), 2, -1)


class MirroredExtractor(Extractor):
    """Another extractor's single row, for the clip and for its mirror image."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.width = extractor, extractor.width
        self.identity = {**extractor.identity, "name": f"mirrored-{extractor.identity['name']}"}

    def rows(self, frames: int) -> int:
        """Return 2."""
        return 2 * self.extractor.rows(frames)

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 2, width) for uint8 (B, F, H, W, 3)."""
        mirrored = np.ascontiguousarray(clips[..., ::-1, :])
        return np.concatenate([self.extractor(clips), self.extractor(mirrored)], 1)


@dataclass(frozen=True)
class Neighbours:
    """For each clip the distance to its nearest training clip, and that clip's number."""

    distance: np.ndarray
    index: np.ndarray


def nearest(clips: Features, training: Features, scale: np.ndarray | float = 1.0) -> Neighbours:
    """Return each clip's nearest training clip by the root mean square difference of `features / scale`.

    Row 0 of a training clip is compared with both rows (as it is, mirrored) of every clip. The training set
    is streamed; memory grows with the number of `clips` alone.
    """
    queries = np.asarray(clips.values, dtype=np.float64) / scale
    best = np.full(len(queries), np.inf)
    index = np.zeros(len(queries), int)
    for start, rows in _blocks(training):
        rows = rows / scale
        norms = np.square(rows).sum(1)
        for row in range(queries.shape[1]):
            query = queries[:, row]
            squares = np.square(query).sum(1)[:, None] - 2 * query @ rows.T + norms
            closest = squares.argmin(1)
            value = squares[np.arange(len(query)), closest]
            better = value < best
            best[better], index[better] = value[better], start + closest[better]
    return Neighbours(np.sqrt(best.clip(min=0) / queries.shape[2]), index)


def audit(
    settings: EvaluationSettings,
    fake: ClipSet,
    held_out: ClipSet,
    extractor: Extractor,
    state: PartialState,
    scratch: Path,
) -> dict[str, Any] | None:
    """Compare generated and held-out clips with the training clips of `settings.memorised`; write the sheet.

    Returns the metrics, the `sentences` for the report and the pairs that are suspiciously near; None in all
    but the main process. Raises `BadInput` if the held-out clips are the training clips.
    """
    stride = max(held_out.clips[0][0].span // 4, 1)
    training = on_main(state, lambda: settings.choose(settings.memorised, None, stride=stride))
    seen = held_out.shared_with(training)
    kept = [number for number, (source, _) in enumerate(held_out.clips) if source.source.name not in seen]
    if len(kept) < 2:
        raise BadInput(
            f"the clips of --real {held_out.root} are among the training clips of --memorised {training.root}"
            ", but the audit needs clips that the model never saw; give a held-out folder as --real."
        )
    extractors = spaces(extractor)
    share = {"state": state, "batch_size": settings.batch_size}
    of_training = extract(training, extractors, settings.cache, label="training", **share)
    of_real = extract(held_out, extractors, settings.cache, label="held-out", **share)
    of_fake = extract(fake, extractors, scratch, label="generated", **share)
    if not state.is_main_process:
        return None
    outcome: dict[str, Any] = {
        "training_folder": str(training.root),
        "training_clips": len(training),
        "held_out_clips": len(kept),
        "near_quantile": NEAR_QUANTILE,
        "feature_extractor": extractor.identity["name"],
        "spaces": {},
        "left_out": seen,
        "sentences": [],
    }
    if seen:
        (one, other), *_ = seen.items()
        outcome["sentences"].append(
            f"{len(held_out) - len(kept)} of the {len(held_out)} held-out clips are left out: their videos "
            f"are among the training clips, perhaps re-encoded (the first: {one}, as {other}).\n"
        )
    pairs: list[tuple[float, int, int, str]] = []
    for space in extractors:
        never_seen = Features.of(np.asarray(of_real[space].values[kept]))
        ours, metrics = compare_space(space, of_fake[space], never_seen, of_training[space])
        marked = [int(i) for i in np.flatnonzero(ours.distance < metrics["threshold"])]
        metrics["marked"] = {fake.name(i): training.name(int(ours.index[i])) for i in marked}
        outcome["spaces"][space] = metrics
        outcome["sentences"].append(_sentence(space, metrics))
        order = np.argsort(ours.distance)[: SHOWN_PAIRS // 2]
        pairs += [(float(ours.distance[i]), int(i), int(ours.index[i]), space) for i in order]
    _write_pairs(settings.out / "nearest-training-clips.png", pairs, fake, training)
    return outcome


def spaces(extractor: Extractor) -> dict[str, Extractor]:
    """Return what takes clips into each space; `extractor`'s single row is that of the features."""
    return {"pixels": ThumbnailExtractor(), "features": MirroredExtractor(extractor)}


def compare_space(
    space: str, generated: Features, held_out: Features, training: Features
) -> tuple[Neighbours, dict[str, Any]]:
    """Return the generated clips' nearest training clips, and the metrics of the space."""
    scale = spread_of(training) if space == "features" else 1.0
    ours, theirs = (nearest(features, training, scale) for features in (generated, held_out))
    return ours, space_metrics(ours.distance, theirs.distance)


def space_metrics(generated: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Return the metrics of one space: medians, minima, the threshold, the share below it, that by chance."""
    threshold = float(np.quantile(held_out, NEAR_QUANTILE))
    below = 1 + NEAR_QUANTILE * (len(held_out) - 1)  # the threshold's rank among the held-out distances
    return {
        "median_generated": float(np.median(generated)),
        "median_held_out": float(np.median(held_out)),
        "smallest_generated": float(generated.min()),
        "smallest_held_out": float(held_out.min()),
        "threshold": threshold,
        "suspicious_share": float((generated < threshold).mean()),
        "share_by_chance": below / (len(held_out) + 1),
        "nearer_than_any_held_out": float((generated < held_out.min()).mean()),
    }


def spread_of(features: Features) -> np.ndarray:
    """Return the standard deviation (width,) over the clips' first rows, 1 where nothing varies."""
    total, square, count = 0.0, 0.0, 0
    for _, rows in _blocks(features):
        total, square, count = total + rows.sum(0), square + np.square(rows).sum(0), count + len(rows)
    spread = np.sqrt(np.maximum(square / count - np.square(total / count), 0))
    return np.where(spread > 1e-6, spread, 1.0)


def _blocks(features: Features, size: int = 1024) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(features.values), size):
        yield start, np.asarray(features.values[start : start + size, 0], dtype=np.float64)


def _sentence(space: str, metrics: Mapping[str, Any]) -> str:
    share, never = metrics["suspicious_share"], metrics["nearer_than_any_held_out"]
    generated, held_out = (number_text(metrics[f"median_{name}"]) for name in ("generated", "held_out"))
    return (
        f"In {space}, {share:.1%} of the generated clips are nearer to a training clip than 95 % of the "
        f"held-out ones are (about {metrics['share_by_chance']:.0%} would be by chance), {never:.1%} nearer "
        f"than any held-out clip is; median distance {generated} against {held_out} for held-out clips.\n"
    )


def _write_pairs(
    path: Path, pairs: list[tuple[float, int, int, str]], fake: ClipSet, training: ClipSet
) -> None:
    rows = []
    for distance, generated, trained, space in pairs:
        rows.append((f"generated: {fake.name(generated)}", fake.read(generated)))
        nearest_one = f"nearest training clip in {space}, distance {number_text(distance)}"
        rows.append((f"{nearest_one}: {training.name(trained)}", training.read(trained)))
    save_image(path, contact_sheet(rows, columns=8))
