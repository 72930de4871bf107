"""The motion metrics: against the phantom's exact flow, and on clips whose motion is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medsora.data.phantom import PhantomClip, render_clip
from medsora.errors import BadInput
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.distributions import circular_distance
from medsora.evaluation.metrics.motion import (
    SPEEDS,
    MotionExtractor,
    MotionMeasure,
    flicker,
    occluded,
    warping_error,
)
from medsora.evaluation.sanity.degrade import frozen
from tests.support.drifting_clips import drifting_clip

BOUND = 3.0  # grey levels of 255 that sub-pixel sampling, shading and noise may cost under the exact flow


@pytest.fixture(scope="module")
def phantom() -> PhantomClip:
    return render_clip(7, 4, 64)


def without_highlights(clip: PhantomClip) -> np.ndarray:
    """Pixels seen in both frames, away from the wet wall's reflections, which do not move with it."""
    bright = (clip.video.max(-1) > 215).astype(np.uint8)
    near = np.stack([cv2.dilate(frame, np.ones((9, 9), np.uint8)) for frame in bright]).astype(bool)
    return clip.valid & ~near[:-1] & ~near[1:]


def test_exact_flow_leaves_little_error(phantom: PhantomClip) -> None:
    counted = without_highlights(phantom)
    assert counted.mean() > 0.2
    standing = warping_error(phantom.video, np.zeros_like(phantom.flow), counted)
    exact = warping_error(phantom.video, phantom.flow, counted)
    assert exact < BOUND
    assert exact < standing / 2


def test_error_grows_with_jitter(phantom: PhantomClip) -> None:
    counted = without_highlights(phantom)
    random = np.random.default_rng(0)
    errors = []
    for strength in (0, 4, 12, 36):
        jitter = random.normal(0, 1, phantom.video.shape) * strength
        video = (phantom.video + jitter).clip(0, 255).astype(np.uint8)
        errors.append(warping_error(video, phantom.flow, counted))
    assert errors == sorted(errors)
    assert errors[3] > errors[0] + 10


def test_nothing_counted_is_undefined(phantom: PhantomClip) -> None:
    assert np.isnan(warping_error(phantom.video, phantom.flow, np.zeros_like(phantom.valid)))


def test_occlusion_is_where_the_ways_there_and_back_differ() -> None:
    forward, backward = np.zeros((1, 2, 8, 8)), np.zeros((1, 2, 8, 8))
    forward[0, 0], backward[0, 0] = 2, -2
    backward[0, :, 3, 5] = 6
    hidden = occluded(forward, backward)[0]
    assert hidden[:, 6:].all()  # leaves the picture
    assert hidden[3, 3]
    assert hidden[:, :6].sum() == 1


def shifting(x: float, y: float, frames: int = 5, size: int = 48) -> np.ndarray:
    """A smooth picture whose content moves by exactly (x, y) pixels per frame."""
    random = np.random.default_rng(1)
    picture = cv2.GaussianBlur(random.normal(size=(160, 160, 3)).astype(np.float32), (0, 0), 2.5)
    picture = 127 + 45 * picture / picture.std()
    rows, columns = np.mgrid[:size, :size].astype(np.float32) + 50
    clip = [cv2.remap(picture, columns - x * k, rows - y * k, cv2.INTER_CUBIC) for k in range(frames)]
    return np.stack(clip).round().clip(0, 255).astype(np.uint8)


def features_of(*clips: np.ndarray) -> Features:
    return Features.of(MotionExtractor()(np.stack(clips)))


def test_known_shift_has_its_speed_and_direction() -> None:
    right, down = features_of(shifting(2, 0)), features_of(shifting(0, 2))
    measure = MotionMeasure()
    metrics = measure.describe(right)
    assert metrics["flow_magnitude"] == pytest.approx(2, abs=0.2)
    assert metrics["warping_error"] < 2
    assert metrics["occluded"] < 0.15
    distances = measure.compare(right, down)
    assert distances["flow_direction_distance"] == pytest.approx(90, abs=8)
    assert distances["flow_magnitude_distance"] < 0.1
    assert all(value == 0 for value in measure.compare(right, right).values())


def test_frozen_clips_do_not_move() -> None:
    moving, still = features_of(shifting(2, 0)), features_of(frozen(shifting(2, 0)))
    measure = MotionMeasure()
    metrics, distances = measure.describe(still), measure.compare(moving, still)
    assert metrics["flow_magnitude"] == metrics["flicker"] == metrics["warping_error"] == 0
    assert distances["flow_magnitude_distance"] == pytest.approx(2, abs=0.25)
    assert np.isnan(distances["flow_direction_distance"])


def test_flicker_sees_light_not_smooth_motion() -> None:
    clip = drifting_clip(0)
    light = np.where(np.arange(len(clip)) % 2, 1.0, 0.8)[:, None, None, None]
    assert flicker((clip * light).astype(np.uint8)) > 5 * flicker(clip)


def test_histograms_are_distributions() -> None:
    features = features_of(shifting(1, 1), shifting(3, -1))
    speeds, directions = MotionMeasure.histograms(features)
    assert speeds.sum() == pytest.approx(1, abs=1e-5)
    assert directions.sum() == pytest.approx(1, abs=1e-5)
    assert len(speeds) == len(SPEEDS) - 1
    assert circular_distance(directions, directions) == 0


def test_too_short_to_move() -> None:
    with pytest.raises(BadInput, match="at least 3 frames, not 2"):
        MotionExtractor().rows(2)
