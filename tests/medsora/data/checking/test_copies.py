"""medsora.data.checking.copies: copies are found in other containers and sizes; other videos are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medsora.data.checking import copies
from medsora.data.checking.check import check_folder
from medsora.data.checking.copies import Content, find_copies, pairs_alike, thumbnails
from medsora.data.checking.view import check_table, check_totals
from tests.support.clip_dataset import clip_dataset
from tests.support.video_files import encode


def scene(seed: int, count: int = 40) -> np.ndarray:
    """A texture that moves by two pixels a frame, uint8 (count, 64, 64, 3)."""
    blocks = np.random.default_rng(seed).integers(40, 200, (40, 40, 3), dtype=np.uint8)
    texture = blocks.repeat(4, 0).repeat(4, 1)
    return np.stack([texture[2 * (k % 40) :][:64, 2 * (k % 40) :][:, :64] for k in range(count)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos: the first copied, the second re-encoded twice, the frames of the third beside it."""
    folder = tmp_path_factory.mktemp("copies")
    for seed in range(4):
        encode(folder / f"VID{seed}.mkv", scene(seed), "ffv1", "bgr0")
    shutil.copy(folder / "VID0.mkv", folder / "VID0 (1).mkv")
    encode(folder / "other" / "b.mp4", scene(1), options={"crf": "30"})
    encode(folder / "other" / "c.avi", scene(1), "mjpeg", "yuvj420p")
    (folder / "VID2").mkdir()
    for number, picture in enumerate(scene(2)):
        Image.fromarray(picture).resize((96, 96)).save(folder / "VID2" / f"{number:03d}.png")
    return folder


COPIES = [{"VID0.mkv", "VID0 (1).mkv"}, {"VID1.mkv", "other/b.mp4", "other/c.avi"}, {"VID2.mkv", "VID2"}]


def test_copies_are_listed(folder: Path, tmp_path: Path) -> None:
    report = check_folder(folder, frames=17, interval=1, cache_path=tmp_path / "check.json")
    assert sorted(map(sorted, report.copies)) == sorted(map(sorted, COPIES))
    again = check_folder(folder, frames=17, interval=1, cache_path=tmp_path / "check.json")
    assert again.copies == report.copies
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(check_table(report))
    assert console.export_text().count("copy of ") == 4
    for text in (check_totals(report), *report.complaints()[-1:]):
        assert "4 videos are copies of others: " in text
        assert all(name in text for group in COPIES for name in group)


def test_copies_stay_on_one_side(folder: Path, tmp_path: Path) -> None:
    sides_met = set()
    for seed in range(10):
        options = {"frames": 16, "interval": 1, "size": 64, "images": 0, "holdout": 0.3, "seed": seed}
        sides = {
            split: {
                video.source.name
                for video in clip_dataset(
                    folder, split=split, check_cache=tmp_path / "c.json", **options
                ).videos
            }
            for split in ("train", "held-out")
        }
        assert sides["held-out"]
        for group in COPIES:
            held_out = group <= sides["held-out"]
            assert held_out or group <= sides["train"]
            sides_met.add((min(group), held_out))
    assert len(sides_met) > len(COPIES)  # they are drawn like everything else


def bordered(frames: np.ndarray, *sides: int) -> np.ndarray:
    top, bottom, left, right = sides
    return np.pad(frames, [(0, 0), (top, bottom), (left, right), (0, 0)])


def test_black_borders_do_not_hide_copies(tmp_path: Path) -> None:
    """Added, removed or wider ones, on any sides, re-encoded and scaled; different scenes stay different."""
    videos = tmp_path / "videos"
    encode(videos / "plain.mkv", scene(1), "ffv1", "bgr0")
    encode(videos / "letterbox.mp4", bordered(scene(1), 14, 14, 0, 0), options={"crf": "23"})
    encode(videos / "pillarbox.avi", bordered(scene(1), 0, 0, 8, 40), "mjpeg", "yuvj420p")
    encode(videos / "other.mkv", bordered(scene(2), 14, 14, 0, 0), "ffv1", "bgr0")
    encode(videos / "another.mkv", bordered(scene(3), 14, 14, 0, 0), "ffv1", "bgr0")
    encode(videos / "wide.mkv", bordered(scene(3), 14, 14, 30, 0), "ffv1", "bgr0")
    report = check_folder(videos, frames=17, interval=1, cache_path=tmp_path / "check.json")
    same = [["another.mkv", "wide.mkv"], ["letterbox.mp4", "pillarbox.avi", "plain.mkv"]]
    assert sorted(map(sorted, report.copies)) == same
    again = check_folder(videos, frames=17, interval=1, cache_path=tmp_path / "check.json")
    assert again.copies == report.copies


def test_copies_of_whole_and_of_inner_pictures_are_one_group() -> None:
    one, other, far = (thumbnails(list(scene(seed, 17))) for seed in (1, 2, 3))
    videos = {"a": Content(17, one), "b": Content(17, other, one), "c": Content(17, other, far)}
    assert find_copies(videos.items()) == [("a", "b", "c")]


def test_flat_videos_are_copies_only_where_they_are_equal() -> None:
    grey = [thumbnails([np.full((64, 64, 3), level, np.uint8)] * 9) for level in (90, 91, 90)]
    videos = [(str(number), Content(9, digits)) for number, digits in enumerate(grey)]
    assert find_copies(videos) == [("0", "2")]
    assert find_copies([("short", Content(9, grey[0])), ("long", Content(90, grey[0]))]) == []


def test_many_copies_that_differ_by_a_little_take_one_comparison_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    first_alike = copies._first_alike
    monkeypatch.setattr(
        copies, "_first_alike", lambda *args: compared.append(len(args[2])) or first_alike(*args)
    )
    random = np.random.default_rng(0)
    base = np.frombuffer(bytes.fromhex(thumbnails(list(scene(0, 17)))), np.uint8).astype(int)
    noisy = [(base + random.integers(-1, 2, base.shape)).astype(np.uint8).tobytes().hex() for _ in range(300)]
    groups = find_copies((str(number), Content(17, digits)) for number, digits in enumerate(noisy))
    assert list(map(len, groups)) == [300]
    assert max(compared) == 1


def test_pairs_have_one_name_of_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [["1a", "1b", "2c", "2d"], ["1e", "1f"], ["2g", "2h"]]
    monkeypatch.setattr(copies, "find_copies", lambda contents: groups if list(contents) else [])
    assert pairs_alike([("a", None)], [("c", None)]) == [("a", "c"), ("b", "c")]
    assert pairs_alike([], []) == []
