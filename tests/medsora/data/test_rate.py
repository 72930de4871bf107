"""medsora.data.checking.windows, medsora.data.clips, medsora.data.checking.check: data.rate takes clips by
time from videos of different and of variable frame rates; slower videos are left out and named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsora.config.load import config_from_dict, config_to_dict
from medsora.data.checking.check import check_folder, clip_windows
from medsora.data.checking.scan import Scan
from medsora.data.checking.view import check_totals
from medsora.data.checking.windows import TimedClips, Window, timed_clips
from medsora.data.clips import ClipSpec
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput
from medsora.evaluation.settings import EvaluationSettings
from tests.support.clip_dataset import clip_dataset
from tests.support.video_files import encode, moving_frames, write_pictures


def test_even_frames_are_the_nearest_at_every_instant() -> None:
    for fps, rate in ((25, 10), (30, 10), (29.97, 10), (50, 8), (10, 10), (9.99, 10)):
        clips = timed_clips(Scan(fps=fps, frames=200), 17, rate)
        numbers = clips.numbers(5)
        assert numbers == sorted(set(numbers))
        assert clips.span == numbers[-1] - numbers[0] + 1
        wanted = 5 / fps + np.arange(17) / rate
        assert np.abs(np.array(numbers) / fps - wanted).max() <= 0.5 / fps + 0.02


def test_uneven_frames_are_the_nearest_at_every_instant() -> None:
    steps = np.random.default_rng(0).integers(20, 101, size=300)
    times = tuple(np.concatenate([[0], np.cumsum(steps)]).tolist())
    scan = Scan(fps=16.0, frames=len(times), times_ms=times, breaks=(150,))
    clips = timed_clips(scan, 9, 10)
    windows = clips.windows(scan, None)
    assert clips.slow_frames(scan) == 0
    assert len(windows) > 20
    for window in windows:
        for start in range(window.start, window.latest + 1):
            numbers = clips.numbers(start)
            assert (numbers[0], numbers) == (start, sorted(set(numbers)))
            assert start < 150 <= numbers[-1] or numbers[-1] < 150 or start >= 150
            assert not start < 150 <= numbers[-1]
            for k, number in enumerate(numbers):
                nearest = np.abs(np.array(times) - (times[start] + 100 * k)).min()
                assert abs(times[number] - (times[start] + 100 * k)) <= nearest + 1
    starts = [s for window in windows for s in range(window.start, window.latest + 1)]
    assert starts == sorted(set(starts))


def test_parts_slower_than_the_rate_give_no_clip() -> None:
    times = tuple([40 * k for k in range(40)] + [1600 + 1000 * k for k in range(40)])
    scan = Scan(fps=2.0, frames=80, times_ms=times)
    clips = timed_clips(scan, 5, 10)
    assert all(clips.numbers(w.latest)[-1] < 41 for w in clips.windows(scan, 1))
    assert clips.slow_frames(scan) == 39
    assert timed_clips(scan, 5, 0.9).slow_frames(scan) == 0


def test_a_clip_of_one_frame_fits_anywhere() -> None:
    assert TimedClips(1, 10, 2.5).windows(Scan(frames=3), None) == [Window(0, 0), Window(1, 1), Window(2, 2)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Videos of 25, 10 and 5 frames per second, one of both 25 and 50, and a folder of pictures."""
    folder = tmp_path / "data"
    for rate in (25, 10, 5):
        encode(folder / f"r{rate:02d}.mkv", moving_frames(60), "ffv1", "bgr0", rate=rate)
    times = [40 * k for k in range(30)] + [1200 + 20 * k for k in range(30)]
    encode(folder / "v.mkv", moving_frames(60), "ffv1", "bgr0", times=times)
    write_pictures(folder / "pictures", "{}.png", moving_frames(30))
    return folder


def test_an_interval_for_mixed_frame_rates_is_reported(mixed: Path, tmp_path: Path) -> None:
    report = check_folder(mixed, frames=5, interval=1, cache_path=tmp_path / "c.json")
    note = "rame rates lie between 5 and "
    assert report.complaints()[-1].startswith(f"f{note}")
    assert f" F{note}" in check_totals(report)
    (mixed / "r05.mkv").unlink()
    (mixed / "r10.mkv").unlink()
    report = check_folder(mixed, frames=5, interval=1, cache_path=tmp_path / "c.json")
    assert report.rates_note is None


def test_clips_of_mixed_frame_rates_have_one_rate(mixed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    report = check_folder(mixed, frames=5, interval=None, rate=10, cache_path=cache)
    assert report.fps == 10
    problems = {video.source.name: video.problem for video in report.bad}
    assert problems.keys() == {"pictures", "r05.mkv"}
    assert problems["r05.mkv"] == "slower than data.rate: it has 5 frames per second, not 10"
    assert "frame rate is not known" in problems["pictures"]
    for video in report.reports:
        assert clip_windows(video.scan, frames=5, interval=None, rate=10) == list(video.windows)
    assert any("left out r05.mkv: slower than data.rate" in line for line in report.complaints())
    assert not any("frame rates" in line for line in report.complaints())
    data = clip_dataset(
        mixed,
        frames=4,
        rate=10,
        interval=None,
        size=(48, 64),
        images=0,
        flip=False,
        split="all",
        check_cache=cache,
    )
    whole = moving_frames(60)
    expected = {"r10.mkv": [0, 1, 2, 3, 4], "r25.mkv": [0, 3, 5, 8, 10], "v.mkv": [0, 2, 5, 7, 10]}
    assert [video.source.name for video in data.videos] == list(expected)
    for index, (video, window) in enumerate(data.windows):
        if window.start == 0:
            clip = video_to_frames(data.fixed_clip(index)["video"])
            numbers = expected[data.videos[video].source.name]
            assert all(np.abs(clip[k].astype(int) - whole[n]).max() <= 1 for k, n in enumerate(numbers))
    assert data.videos[2].numbers(35) == [35, 40, 45, 50, 55]  # at twice the speed, twice the steps


def test_frames_by_number_are_read_like_all_frames(mixed: Path) -> None:
    for name in ("r25.mkv", "pictures"):
        whole = read_frames(mixed / name)
        assert np.array_equal(read_frames(mixed / name, numbers=[3, 4, 9, 20]), whole[[3, 4, 9, 20]])
        with pytest.raises(ValueError, match="frame 70 does not exist"):
            read_frames(mixed / name, numbers=[3, 70])


@pytest.mark.parametrize(
    ("data", "interval", "rate"),
    [
        ({}, 3, None),
        ({"rate": 8}, None, 8),
        ({"rate": 8, "interval": None}, None, 8),
        ({"rate": None}, 3, None),
    ],
)
def test_the_rate_takes_the_place_of_the_interval(
    data: dict, interval: int | None, rate: float | None
) -> None:
    config = config_from_dict({"data": data}, "a.yaml")
    assert (config.data.interval, config.data.rate) == (interval, rate)
    assert config_from_dict(config_to_dict(config), "saved") == config


@pytest.mark.parametrize("data", [{"rate": 8, "interval": 3}, {"interval": None}, {"rate": 0}])
def test_rate_and_interval_exclude_one_another(data: dict) -> None:
    with pytest.raises(BadInput, match=r"data\.(interval|rate)"):
        config_from_dict({"data": data}, "a.yaml")


def test_real_clips_of_an_evaluation_are_taken_by_time(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = EvaluationSettings(mixed, mixed, rate=10, frames=5, size=(48, 64), clips=100)
    clips = settings.choose(mixed, None)
    index = [clips.name(k) for k in range(len(clips))].index("r25.mkv@0")
    assert np.array_equal(clips.read(index), read_frames(mixed / "r25.mkv", numbers=[0, 3, 5, 8, 10]))
    assert {source.source.name for source, _ in clips.clips} == {"r10.mkv", "r25.mkv", "v.mkv"}
    assert clips.digest() != settings.choose(mixed, None, rate=9).digest()
    with pytest.raises(BadInput, match="give one of them"):
        EvaluationSettings(mixed, mixed, rate=10, interval=3)


def test_a_clip_needs_one_of_both() -> None:
    with pytest.raises(BadInput, match="set one of them"):
        ClipSpec(rate=8)
    with pytest.raises(BadInput, match="greater than 0"):
        ClipSpec(rate=-1, interval=None)
