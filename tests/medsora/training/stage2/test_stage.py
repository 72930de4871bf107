"""medsora.training.stage2.stage: the frame rate of the clips is stored with the model; samples have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsora.data.reading.video_io import probe, read_frames
from tests.support import tiny_training as tiny
from tests.support.video_files import write_pictures


def trained(clips: Path, work: Path, **changes: object) -> tuple[dict, float]:
    """Return what pipeline.json says after two steps of both stages, and the rate of a sample."""
    steps = {
        f"{stage}__{key}": 2 for stage in ("train_vae", "train_dit") for key in ("max_steps", "save_every")
    }
    config = tiny.tiny_config(work, clips, train_dit__sample_every=2, **steps, **changes)
    tiny.train("vae", config)
    run = tiny.train("dit", config)
    return json.loads((run / "pipeline.json").read_text()), probe(next(run.rglob("video-00000.mp4"))).fps


def test_clips_at_an_interval_have_a_part_of_the_videos_rate(clips: Path, tmp_path: Path) -> None:
    described, fps = trained(clips, tmp_path)
    assert (described["rate"], described["fps"], fps) == (10, 10, 10)


def test_both_stages_train_on_clips_taken_by_time(clips: Path, tmp_path: Path) -> None:
    described, fps = trained(
        clips, tmp_path, data__interval=None, data__rate=5, data__frames=8, flow__estimator="dis"
    )
    assert (described["rate"], described["fps"], fps) == (5, 5, 5)


def test_pictures_without_a_rate_are_written_at_eight_with_a_note(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for video in clips.glob("*.mkv"):
        write_pictures(tmp_path / "pictures" / video.stem, "{}.png", read_frames(video))
    described, fps = trained(tmp_path / "pictures", tmp_path)
    assert "rate" not in described
    assert (described["fps"], fps) == (8, 8)
    assert "the frame rate of the clips is not known" in "".join(capsys.readouterr())
