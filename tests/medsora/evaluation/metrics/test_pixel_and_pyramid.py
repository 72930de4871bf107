"""medsora.evaluation.metrics.pixel, medsora.evaluation.metrics.pyramid, medsora.evaluation.metrics.measure,
medsora.evaluation.sanity.degradations: what the weight-free metrics notice, and in which order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medsora.config.choices import WEIGHT_FREE
from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from medsora.evaluation.features.clip_set import choose_clips
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import FrechetMeasure, Measure
from medsora.evaluation.metrics.pixel import PixelMeasure, sharpness
from medsora.evaluation.metrics.pyramid import KINDS, PyramidExtractor, make_filters
from medsora.evaluation.metrics.registry import build_measures
from medsora.evaluation.sanity import degradations
from medsora.evaluation.sanity.degradations import ORDERS, broken_orders, distances_of_degradations, halves
from medsora.evaluation.sanity.degrade import blurred
from tests.support.drifting_clips import drifting_clip, write_clips

PYRAMID = FrechetMeasure("distance", "pyramid", PyramidExtractor())


def features_of(measure: Measure, clips: list[np.ndarray]) -> Features:
    return Features.of(measure.extractor(np.stack(clips)))


def test_every_metric_orders_what_it_must() -> None:
    clips = [drifting_clip(seed, size=48) for seed in range(24)]
    measures = list(build_measures(WEIGHT_FREE, {}, "cpu").values())
    found = distances_of_degradations(measures, clips[:12], clips[12:])
    assert set(ORDERS) < set(found)
    assert broken_orders(found) == []


def test_a_metric_without_a_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="has no measure of the metric 'vividness'"):
        build_measures(["vividness"], {}, "cpu")


def test_an_order_that_does_not_hold_is_named() -> None:
    row = dict.fromkeys(("real", "mild blur", "strong blur", "shuffled", "frozen", "noise"), 1.0)
    broken = broken_orders({key: row for key in ORDERS})
    assert len(broken) == sum(map(len, ORDERS.values()))
    assert "real 1" in broken[0]


def test_clips_that_are_too_short_for_motion_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["degradations", "--real", "clips", "--frames", "2"])
    with pytest.raises(BadInput, match="--frames is 2 but must be at least 3"):
        degradations.main()


def test_halves_share_no_video_or_no_time(tmp_path: Path) -> None:
    folder = write_clips(tmp_path, range(4), frames=16, size=16)
    clips = choose_clips(folder, frames=4, size=16, interval=1, count=None, seed=0)
    names = [[{clips.clips[i][0].source.name for i in half} for half in halves(clips, "video")]]
    assert not names[0][0] & names[0][1]
    for half, starts in zip(halves(clips, "time"), ({0, 4}, {8, 12}), strict=True):
        assert {clips.clips[i][1] for i in half} == starts
    with pytest.raises(BadInput, match="two halves"):
        halves(choose_clips(folder, frames=4, size=16, interval=1, count=2, seed=0), "video")


def test_compression_is_noticed_and_is_small(tmp_path: Path) -> None:
    """H.264 takes away fine grain: less sharp, but nearer to the original than a blur is."""
    random = np.random.default_rng(0)
    clips = [
        (drifting_clip(seed) + random.normal(0, 6, (8, 32, 32, 3))).clip(0, 255).astype(np.uint8)
        for seed in range(6)
    ]
    for number, clip in enumerate(clips):
        write_video(tmp_path / f"{number}.mp4", clip, 10)
        write_video(tmp_path / f"{number}.mkv", clip, 10, lossless=True)
    lossless = [read_frames(tmp_path / f"{n}.mkv") for n in range(6)]
    compressed = [read_frames(tmp_path / f"{n}.mp4") for n in range(6)]
    assert all(np.array_equal(*pair) for pair in zip(clips, lossless, strict=True))
    assert np.mean([sharpness(c) for c in compressed]) < np.mean([sharpness(c) for c in lossless]) - 0.02
    of_lossless = features_of(PYRAMID, lossless)
    by_codec = PYRAMID.compare(of_lossless, features_of(PYRAMID, compressed))["distance"]
    by_blur = PYRAMID.compare(of_lossless, features_of(PYRAMID, [blurred(c, 1.0) for c in clips]))["distance"]
    assert 0.01 < by_codec < by_blur


def test_colours_shift_by_what_was_added() -> None:
    clip = drifting_clip(0).clip(40, 180)
    measure = PixelMeasure()
    one, two = features_of(measure, [clip]), features_of(measure, [clip + np.uint8(12)])
    assert measure.compare(one, two)["colour_distance"] == pytest.approx(12, abs=0.01)
    assert measure.describe(two)["brightness"] - measure.describe(one)["brightness"] == pytest.approx(12)
    assert measure.compare(one, two)["sharpness_distance"] == pytest.approx(0, abs=1e-5)


def test_filters_see_no_even_area_and_are_the_documented_ones() -> None:
    filters = make_filters()
    assert {kind: f.shape[2:] for kind, f in filters.items()} == KINDS
    for drawn in filters.values():
        assert np.allclose(drawn.sum((2, 3, 4)), 0, atol=1e-6)
        assert np.allclose(np.square(drawn).sum((1, 2, 3, 4)), 1, atol=1e-6)
    assert filters["space"].ravel()[:3] == pytest.approx([0.1087786, 0.2403949, 0.1340821], abs=1e-6)


def test_features_depend_neither_on_batch_nor_on_order() -> None:
    clips = np.stack([drifting_clip(seed) for seed in range(4)])
    extractor = PyramidExtractor()
    together = extractor(clips)
    alone = np.concatenate([extractor(clip[None]) for clip in clips[::-1]])[::-1]
    assert together.shape == (4, extractor.rows(8), extractor.width)
    assert np.allclose(together, alone, atol=1e-5)
    with pytest.raises(BadInput, match="at least 3 frames"):
        extractor.rows(1)
