"""medsora.evaluation.sanity.baselines, medsora.evaluation.sanity.degrade: the demo's outcome: met by clips
like the real ones, missed by each trivial baseline and by the untrained model.
"""

from __future__ import annotations

import numpy as np
import pytest

from medsora.evaluation.sanity import baselines
from medsora.evaluation.sanity.baselines import GENERATED, REAL, UNTRAINED, log_position
from medsora.evaluation.sanity.degrade import blurred, frozen, mean_clip, noisy
from tests.support.drifting_clips import drifting_clip

CLIPS = [drifting_clip(seed) for seed in range(18)]
REFERENCE, HELD_OUT, OTHERS = CLIPS[:8], CLIPS[8:13], CLIPS[13:]
NOISE = [noisy(clip, seed) for seed, clip in enumerate(OTHERS)]


def criteria_met(generated: list[np.ndarray]) -> list[bool]:
    outcome = baselines.compare_with_baselines(REFERENCE, HELD_OUT, generated, NOISE)
    return [criterion.met for criterion in outcome.criteria]


def test_real_clips_pass() -> None:
    outcome = baselines.compare_with_baselines(REFERENCE, HELD_OUT, OTHERS, NOISE)
    assert outcome.passes
    assert outcome.position is not None
    assert outcome.position < 0.3
    assert all(sentence.startswith("Pass: ") for sentence in outcome.sentences())
    assert [row[0] for row in outcome.rows()][:3] == [REAL, GENERATED, UNTRAINED]
    assert all(len(row) == len(outcome.header) for row in outcome.rows())


@pytest.mark.parametrize(
    ("generated", "refuted"),
    [
        ([noisy(clip, 90 + k) for k, clip in enumerate(OTHERS)], 0),
        ([mean_clip(REFERENCE)] * 5, 1),
        ([blurred(clip, 2.5) for clip in OTHERS], 2),
        ([frozen(clip) for clip in OTHERS], 3),
    ],
    ids=["noise", "mean clip", "blurred", "frozen"],
)
def test_trivial_baselines_do_not_pass(generated: list[np.ndarray], refuted: int) -> None:
    assert not criteria_met(generated)[refuted]


def test_sets_are_cut_to_one_count() -> None:
    """A Fréchet distance depends on the number of clips, so more generated ones change nothing."""
    outcome = baselines.compare_with_baselines(REFERENCE, HELD_OUT, OTHERS, NOISE)
    more = baselines.compare_with_baselines(REFERENCE, HELD_OUT, OTHERS + CLIPS[:2], NOISE)
    assert more.table == outcome.table


def test_too_few_clips() -> None:
    with pytest.raises(ValueError, match="needs 2 clips or more"):
        baselines.compare_with_baselines(REFERENCE, HELD_OUT, OTHERS[:1], NOISE)


def test_position_in_log_scale() -> None:
    assert log_position(1.0, 10.0, 100.0) == pytest.approx(0.5)
    assert log_position(5.0, 5.0, 6.0) == 0
    assert log_position(3.0, 1.0, 3.0) is None
