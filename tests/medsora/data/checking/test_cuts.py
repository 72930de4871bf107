"""medsora.data.checking.cuts, tools.cut_detection: joins of two clips are found, motion, instruments,
flashes and light are no cuts, and no clip crosses one.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from medsora.data.checking import cuts as cuts_module
from medsora.data.checking.check import check_folder
from medsora.data.checking.scan import scan_source
from medsora.data.phantom.render import render_clip
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from medsora.evaluation.features.clip_set import choose_clips
from tests.support.clip_dataset import clip_dataset
from tests.support.video_files import encode, write_pictures
from tools.cut_detection import cuts_of, joins_missed, main

CLIPS = 9


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    kinds = [{"polyp": True}, {"instrument": True}, {}]
    return [render_clip(seed, 12, 32, **kinds[seed % 3]).video for seed in range(CLIPS)]


def test_phantom_clips_have_no_cut_and_joins_of_two_are_found(clips: list[np.ndarray]) -> None:
    assert [cuts_of(clip) for clip in clips] == [()] * CLIPS
    assert joins_missed(clips, 60, seed=1) <= 3


def test_real_clips_have_no_cut_and_joins_of_two_are_found(
    endoscopy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(endoscopy_folder), "--joins", "60"])
    alarms, joins = capsys.readouterr().out.splitlines()
    assert alarms == "4 videos, 0 false alarms"
    assert int(joins.split()[0]) >= 57


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("level", [0, 255])
def test_flashes_and_drop_outs_are_no_cuts(clips: list[np.ndarray], frames: int, level: int) -> None:
    for clip in clips:
        clip = clip.copy()
        clip[5 : 5 + frames] = level
        assert cuts_of(clip) == ()


def test_light_that_changes_is_no_cut(clips: list[np.ndarray]) -> None:
    brighter = [np.concatenate([clip[:6], clip[6:] // 2]) for clip in clips]
    assert sum(bool(cuts_of(clip)) for clip in brighter) == 0


@pytest.mark.parametrize("times", [2, 3, 4])
def test_repeated_frames_make_no_cuts_and_hide_none(
    times: int, clips: list[np.ndarray], tmp_path: Path
) -> None:
    """A recorder takes a camera's frames more often than they change."""
    assert [cuts_of(clip.repeat(times, axis=0)) for clip in clips] == [()] * CLIPS
    joined = [np.concatenate(pair).repeat(times, axis=0) for pair in pairwise(clips)]
    assert sum(cuts_of(pair) != (12 * times,) for pair in joined) <= 1
    texture = (
        np.random.default_rng(0).integers(60, 180, (60, 60, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    )
    shifted = np.stack([texture[k : k + 64, k : k + 64] for k in range(48)])  # by half of what is sampled
    assert cuts_of(shifted) == ()
    path = encode(tmp_path / "shifted.mkv", shifted, "ffv1", "bgr0")
    assert scan_source(Source(path, path.name)).breaks == ()


def test_unlike_and_still_frames_have_no_cuts() -> None:
    noise = (
        np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    )
    assert cuts_of(noise) == ()
    assert cuts_of(np.full((20, 32, 32, 3), 90, np.uint8)) == ()
    for few in range(5):
        assert cuts_of(np.zeros((few, 32, 32, 3), np.uint8)) == ()


def test_cuts_do_not_depend_on_how_many_frames_are_held(
    clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.concatenate(clips)
    expected = cuts_of(frames)
    assert len(expected) >= CLIPS - 2
    for block in (1, 3, 12, 13):
        monkeypatch.setattr(cuts_module, "BLOCK", block)
        assert cuts_of(frames) == expected


@pytest.fixture
def joined(clips: list[np.ndarray], tmp_path: Path) -> Path:
    """A folder of one video and one folder of pictures, each of three clips behind each other."""
    frames = np.concatenate(clips[:3])
    write_video(tmp_path / "data" / "a.mp4", frames, 10)
    write_pictures(tmp_path / "data" / "b", "{:03d}.png", frames)
    return tmp_path / "data"


def test_no_clip_crosses_a_cut(joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shot(start: int, frames: int) -> bool:
        return start // 12 == (start + frames - 1) // 12

    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "check.json"
    for _ in range(2):  # decoded, and recalled
        report = check_folder(joined, frames=5, interval=2, clip_stride=1, cache_path=cache)
        assert [video.scan.breaks for video in report.reports] == [(12, 24)] * 2
        assert [video.scan.runs() for video in report.reports] == [[(0, 12), (12, 24), (24, 36)]] * 2
        assert all(shot(w.start, 9) and shot(w.latest, 9) for video in report.reports for w in video.windows)
        assert report.reports[0].shots_words == "2 hard cuts (at frames 12, 24)"
        assert any("2 hard cuts (at frames 12, 24)" in line for line in report.complaints())
    data = clip_dataset(joined, frames=4, interval=1, size=16, images=2, split="all", check_cache=cache)
    choices = [data.choose(epoch, index) for epoch in range(20) for index in range(len(data))]
    assert {choice.start // 12 for choice in choices} == {0, 1, 2}
    assert all(shot(choice.start, 5) for choice in choices)
    scored = choose_clips(joined, frames=5, size=16, interval=1, count=10, seed=0)
    assert len(scored.clips) == 10
    assert all(shot(start, 5) for _, start in scored.clips)
    too_long = check_folder(joined, frames=7, interval=2, cache_path=cache)
    assert too_long.clips == 0
    assert too_long.bad[0].problem == (
        "too short: 12 frames in a row, a clip spans 13; 2 hard cuts (at frames 12, 24)"
    )


def test_clips_of_generated_videos_cross_cuts(
    joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A jump is the model's fault: without these clips its scores would be too good."""
    monkeypatch.chdir(tmp_path)
    chosen = {"frames": 36, "size": 16, "interval": 1, "count": None, "seed": 0}
    with pytest.raises(BadInput, match="too short: 12 frames in a row, a clip spans 36; 2 hard cuts"):
        choose_clips(joined, **chosen)
    generated = choose_clips(joined, **chosen, generated=True)  # from the cache
    assert [start for _, start in generated.clips] == [0, 0]
    assert generated.read(0).shape == (36, 16, 16, 3)
    assert [video.shots_words for video in generated.report.reports] == [None, None]


def test_cuts_are_found_in_large_frames_without_reading_every_pixel(
    clips: list[np.ndarray], tmp_path: Path
) -> None:
    frames = np.concatenate([clips[0][:6], clips[1][:6]]).repeat(12, 1).repeat(12, 2)
    write_video(tmp_path / "a.mp4", frames, 10)
    assert cuts_of(read_frames(tmp_path / "a.mp4")) == (6,)
    (video,) = check_folder(tmp_path, frames=3, interval=1, cache_path=tmp_path / "c.json").reports
    assert video.scan.breaks == (6,)
