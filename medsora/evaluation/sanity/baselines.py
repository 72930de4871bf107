"""Whether a model learned something: its clips between the two ends, phantom against phantom and untrained.

Every candidate set is compared with the same reference of phantom clips by the metrics that need no weights.
Three trivial baselines stand in the same table: the mean clip, frozen clips, strongly blurred clips. Each
shows what a model could have done without having learned how such clips look and move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import FrechetMeasure
from medsora.evaluation.metrics.motion import MotionMeasure
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.sanity.criterion import Criterion
from medsora.evaluation.sanity.degrade import blurred, frozen, mean_clip

STRONG_BLUR = 1 / 16  # sigma as a share of the frame's height
PYRAMID, MOTION = "untrained_pyramid_distance", "flow_magnitude_distance"
COLUMNS = {
    PYRAMID: "untrained pyramid distance",
    MOTION: "flow magnitude distance (DIS), px/frame",
    "flow_magnitude": "mean flow (DIS), px/frame",
}
REAL, GENERATED, UNTRAINED = "phantom (held out)", "generated", "untrained model"
MEAN, FROZEN, BLURRED = (
    "trivial baseline: the mean clip",
    "trivial baseline: frozen phantom clips",
    "trivial baseline: strongly blurred phantom clips",
)


@dataclass(frozen=True)
class Outcome:
    """A table (row name -> metrics by the keys of `columns`, whose values are titles) and its criteria.

    `position` is where the generated clips lie between the two ends in log scale: 0 as near as real clips,
    1 as far as the untrained model's; None if an end is missing or the ends coincide.
    """

    table: dict[str, dict[str, float]]
    position: float | None
    criteria: list[Criterion]
    columns: dict[str, str] = field(default_factory=lambda: COLUMNS)

    @property
    def passes(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.met for criterion in self.criteria)

    @property
    def header(self) -> tuple[str, ...]:
        """The titles of a report's table."""
        return ("", *self.columns.values())

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a report's table: a name, then its numbers."""
        return [(name, *(number_text(row[key]) for key in self.columns)) for name, row in self.table.items()]

    def sentences(self) -> list[str]:
        """Return every criterion, and whether it is met, as a sentence."""
        return [str(criterion) for criterion in self.criteria]


def compare_with_baselines(
    reference: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    generated: Sequence[np.ndarray],
    untrained: Sequence[np.ndarray],
) -> Outcome:
    """Place generated clips between phantom clips and an untrained model's; about 0.15 s a clip of 16x64x64.

    Args:
        reference: phantom clips, uint8 (F, H, W, 3), that all others are compared with; the mean clip is that
            of these.
        held_out: other phantom clips, from other videos.
        generated, untrained: what the trained and the untrained model make.

    From `held_out`, `generated` and `untrained` the same number of clips is used, the least that any of them
    has: a Fréchet distance depends on the number. Raises `ValueError` for fewer than two clips in any set.
    """
    count = min(len(held_out), len(generated), len(untrained))
    if min(count, len(reference)) < 2:
        raise ValueError("every set of the comparison needs 2 clips or more; sample or hold out more.")
    real = list(held_out[:count])
    sigma = STRONG_BLUR * real[0].shape[1]
    candidates = {
        REAL: real,
        GENERATED: generated[:count],
        UNTRAINED: untrained[:count],
        MEAN: [mean_clip(reference)] * count,
        FROZEN: [frozen(clip) for clip in real],
        BLURRED: [blurred(clip, sigma) for clip in real],
    }
    measures = [FrechetMeasure(PYRAMID, COLUMNS[PYRAMID], PyramidExtractor()), MotionMeasure()]
    table: dict[str, dict[str, float]] = {name: {} for name in candidates}
    for measure in measures:
        of_reference = Features.of_clips(measure.extractor, reference)
        for name, clips in candidates.items():
            features = Features.of_clips(measure.extractor, clips)
            table[name] |= measure.compare(of_reference, features) | measure.describe(features)
    table = {name: {key: row[key] for key in COLUMNS} for name, row in table.items()}
    position = log_position(*(table[name][PYRAMID] for name in (REAL, GENERATED, UNTRAINED)))
    return Outcome(table, position, _criteria(table, position))


def log_position(near: float, value: float, far: float) -> float | None:
    """Return where `value` lies from `near` (0) to `far` (1) in log scale; None without two ends."""
    if not 0 < near < far or value <= 0:
        return None
    return math.log(value / near) / math.log(far / near)


def _criteria(table: dict[str, dict[str, float]], position: float | None) -> list[Criterion]:
    position_text = "undefined" if position is None else f"{position:.2f}"
    criteria = [
        Criterion(
            "generated clips lie nearer to the phantom than to the untrained model's, in log scale: position "
            f"{position_text} between 0 (phantom) and 1 (untrained), below 0.5",
            position is not None and position < 0.5,
        )
    ]
    for baseline, key in ((MEAN, PYRAMID), (BLURRED, PYRAMID), (FROZEN, MOTION)):
        ours, theirs = table[GENERATED][key], table[baseline][key]
        values = f"{COLUMNS[key]} {number_text(ours)} against {number_text(theirs)}"
        criteria.append(Criterion(f"they beat the {baseline}: {values}", ours < theirs))
    return criteria
