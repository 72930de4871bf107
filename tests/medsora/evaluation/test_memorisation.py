"""The audit finds clips that were copied from the training set, and leaves fresh ones alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.evaluation import evaluate, memorisation
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.memorisation import MirroredExtractor, ThumbnailExtractor, nearest, spread_of
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from tests.support.drifting_clips import bordered, drifting_clip, write_clips


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_copies_are_found_and_fresh_clips_are_not(tmp_path: Path) -> None:
    """One generated clip is a training clip, mirrored and compressed; it alone is marked, in pixels."""
    train = tmp_path / "train"
    for seed in range(20, 28):  # its black borders are cut off, as they were in training
        frames = bordered(drifting_clip(seed, frames=12))
        write_video(train / f"clip-{seed}.mkv", frames, 10, lossless=True)
    held_out = write_clips(tmp_path / "held-out", range(6))
    fake = write_clips(tmp_path / "fake", range(10, 13))
    copied = drifting_clip(23, frames=12)[2:10, :, ::-1]
    write_video(fake / "copy.mp4", np.ascontiguousarray(copied), 10)
    results = evaluate(held_out, fake, metrics="pixel", frames=8, size=32, memorised=train)
    assert results is not None
    pixels = results.memorisation["spaces"]["pixels"]
    assert set(pixels["marked"]) == {"copy.mp4@0"}
    assert pixels["marked"]["copy.mp4@0"].startswith("clip-23.mkv@")
    assert pixels["suspicious_share"] == pixels["nearer_than_any_held_out"] == 0.25
    assert pixels["smallest_generated"] < pixels["smallest_held_out"] / 2
    assert results.memorisation["training_clips"] == 8 * 3  # a quarter of a clip apart
    assert (tmp_path / "results" / "nearest-training-clips.png").is_file()
    assert "25.0% of the generated clips" in (tmp_path / "results" / "results.md").read_text()
    written = json.loads((tmp_path / "results" / "results.json").read_text())
    assert written["memorisation"]["feature_extractor"] == "untrained-pyramid"


def test_held_out_clips_must_be_held_out(tmp_path: Path) -> None:
    train = write_clips(tmp_path / "train", range(3))
    fake = write_clips(tmp_path / "fake", range(10, 12))
    with pytest.raises(BadInput, match="never saw; give a held-out folder"):
        evaluate(train, fake, metrics="pixel", frames=8, size=32, memorised=train)


def test_reencoded_training_clips_among_the_held_out_ones_are_left_out(tmp_path: Path) -> None:
    """Otherwise their small distances would set the threshold below that of copies."""
    train = write_clips(tmp_path / "train", range(20, 28))
    held_out = write_clips(tmp_path / "held-out", range(6))
    fake = write_clips(tmp_path / "fake", range(10, 13))
    write_video(fake / "copy.mp4", drifting_clip(23), 10)
    options = {"metrics": "pixel", "frames": 8, "size": 32, "memorised": train}
    clean = evaluate(held_out, fake, **options).memorisation
    for seed, frames in ((24, drifting_clip(24)), (25, bordered(drifting_clip(25)))):
        write_video(held_out / f"{seed}.mp4", frames, 10)
    found = evaluate(held_out, fake, **options).memorisation
    assert (clean["left_out"], clean["held_out_clips"]) == ({}, 6)
    assert found["left_out"] == {"24.mp4": "clip-24.mkv", "25.mp4": "clip-25.mkv"}
    assert found["spaces"] == clean["spaces"]
    assert set(found["spaces"]["pixels"]["marked"]) == {"copy.mp4@0"}
    assert "2 of the 8 held-out clips are left out" in (tmp_path / "results" / "results.md").read_text()
    for path in held_out.glob("*.mkv"):
        path.unlink()
    with pytest.raises(BadInput, match="never saw; give a held-out folder"):
        evaluate(held_out, fake, **options)


def test_nearest_is_brute_force() -> None:
    random = np.random.default_rng(0)
    queries, training = random.normal(size=(5, 2, 7)), random.normal(size=(2100, 2, 7))
    found = nearest(Features.of(queries), Features.of(training), scale=2.0)
    gaps = (queries[:, :, None] - training[None, None, :, 0]) / 2
    distances = np.sqrt(np.square(gaps).mean(-1)).min(1)
    assert np.allclose(found.distance, distances.min(1))
    assert np.array_equal(found.index, distances.argmin(1))


def test_second_rows_are_the_mirror_image() -> None:
    clip = drifting_clip(0)[None]
    mirrored = np.ascontiguousarray(clip[..., ::-1, :])
    for extractor in (ThumbnailExtractor(), MirroredExtractor(PyramidExtractor())):
        one, two = extractor(clip), extractor(mirrored)
        assert one.shape == (1, extractor.rows(8), extractor.width)
        assert np.allclose(one[:, 1], two[:, 0], atol=1e-4)


def test_figures_of_a_space() -> None:
    metrics = memorisation.space_metrics(np.array([0.1, 5.0, 6.0, 7.0]), np.arange(1.0, 101.0))
    assert metrics["threshold"] == pytest.approx(5.95)
    assert metrics["suspicious_share"] == 0.5
    assert metrics["nearer_than_any_held_out"] == 0.25


@pytest.mark.parametrize("held_out", [2, 6, 16, 200])
def test_the_share_by_chance_is_that_of_clips_like_the_held_out_ones(held_out: int) -> None:
    """Few held-out clips mark far more than 5 % of them: their lowest twentieth is a guess."""
    random = np.random.default_rng(0)
    trials = [memorisation.space_metrics(random.random(100), random.random(held_out)) for _ in range(1000)]
    found = np.mean([metrics["suspicious_share"] for metrics in trials])
    assert found == pytest.approx(trials[0]["share_by_chance"], abs=0.02)


def test_spread_is_never_zero() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(50, 1, 4))
    values[..., 2] = 1
    assert np.allclose(spread_of(Features.of(values)), [*values[:, 0, :2].std(0), 1, values[:, 0, 3].std()])
