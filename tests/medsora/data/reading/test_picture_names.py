"""medsora.data.reading.picture_names: what names of pictures tell, and what they do not."""

from __future__ import annotations

import pytest

from medsora.data.reading.picture_names import SortedPictures, natural_key, sort_pictures


def sizes(found: SortedPictures) -> dict[str, int]:
    """Return the number of pictures by pattern of the recordings."""
    return {pattern: len(recording.pictures) for pattern, recording in found.recordings.items()}


def only(names: list[str]) -> tuple[str, ...]:
    """Return the frames of the one recording that `names` are, in order."""
    found = sort_pictures(reversed(names))
    (recording,) = found.recordings.values()
    assert not recording.stills
    assert not recording.problem
    return recording.pictures


def test_numbers_are_ordered_as_numbers() -> None:
    names = ["frame_10.png", "frame_2.png", "Frame_1.png", "10.png", "9.png"]
    assert sorted(names, key=natural_key) == ["9.png", "10.png", "Frame_1.png", "frame_2.png", "frame_10.png"]


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("0728{video}84c8da942d9_{frame}.jpg", ["0728084c8da942d9_*.jpg", "0728184c8da942d9_*.jpg"]),
        ("VID{video:02d}_{frame:06d}.png", ["VID00_*.png", "VID01_*.png"]),
        ("P{video}-{frame}.png", ["P0-*.png", "P1-*.png"]),
        ("{frame}_vid{video}.png", ["*_vid0.png", "*_vid1.png"]),
        ("frame{frame}_cam{video}.png", ["frame*_cam0.png", "frame*_cam1.png"]),
        ("IMG_2023010{video}_{frame:04d}.jpg", ["IMG_20230100_*.jpg", "IMG_20230101_*.jpg"]),
        ("shot{video}.{frame:04d}.png", ["shot0.*.png", "shot1.*.png"]),
    ],
)
def test_each_prefix_with_numbers_that_follow_each_other_is_a_recording(
    name: str, patterns: list[str]
) -> None:
    names = [name.format(video=video, frame=frame) for frame in range(20, 35) for video in range(2)]
    assert sizes(sort_pictures(names)) == dict.fromkeys(patterns, 15)


@pytest.mark.parametrize(
    "name",
    [
        "frame{}.png",
        "{:05d}.jpg",
        "frame_{:04d}_640x480.png",
        "{:04d}_cam1.png",
        "Fall 3, {}.png",
        "vlc10h11m_{}.png",
    ],
)
def test_one_prefix_is_one_recording(name: str) -> None:
    names = [name.format(number) for number in range(5, 25)]
    assert only(names) == tuple(names)


@pytest.mark.parametrize(
    "names",
    [
        ["cju0qkwl35piu0993l0dewei2.jpg", "cju0qoxqj9q6s0835b43399p4.jpg", "cju0qx73cjw570799j4n5cjze.jpg"],
        ["a.png", "b.png", "c.png", "d.png"],
        [f"case{number}_frame0.png" for number in range(20)],
        [f"patient{number}.png" for number in range(20)],
        [f"{video}_{frame}.png" for video in range(100) for frame in range(2)],  # not 2 videos of 100 frames
        ["3.png", "17.png", "122.png", "140.png"],
    ],
)
def test_what_is_surely_no_recording_is_single_pictures(names: list[str]) -> None:
    (stills,) = sort_pictures(names).recordings.values()
    assert stills.stills
    assert sorted(stills.pictures) == sorted(names)


def test_posters_and_pictures_of_no_recording_are_left_out() -> None:
    frames = [f"{number:04d}.jpg" for number in range(40)]
    found = sort_pictures([*frames, "cover.jpg", "thumb_01.png", "overview.png", "0001 (1).jpg"])
    assert list(found.recordings["*.jpg"].pictures) == frames
    assert len(found.recordings) == 1
    assert found.posters == ["cover.jpg", "thumb_01.png"]
    assert found.strays == ["0001 (1).jpg", "overview.png"]
    videos = [f"case{number:02d}.mkv" for number in range(20)]
    for name in ("case{:02d}.jpg", "case{:02d}-thumb.png", "poster{}.png", "Case_{}_preview.webp"):
        posters = [name.format(number) for number in range(20)]
        found = sort_pictures(posters, videos)
        assert (found.recordings, sorted(found.posters)) == ({}, sorted(posters))
    thumbs = [f"thumb{number:04d}.png" for number in range(40)]  # as in FFmpeg's manual: frames, if alone
    assert only(thumbs) == tuple(thumbs)


@pytest.mark.parametrize(
    ("numbers", "breaks", "step"),
    [
        ([*range(10), *range(15, 30), *range(31, 40)], (10, 25), 1),
        (list(range(0, 200, 5)), (), 5),
        ([*range(0, 50, 5), *range(60, 100, 5)], (10,), 5),
        ([number * 1000 // 30 for number in range(60)], (), 33),
        ([number * 1000 // 30 for number in range(60) if number != 20], (20,), 33),
        (list(range(-4, 5)), (), 1),
    ],
)
def test_gaps_are_steps_longer_than_usual(numbers: list[int], breaks: tuple[int, ...], step: int) -> None:
    (recording,) = sort_pictures([f"f_{number}.png" for number in numbers]).recordings.values()
    assert (recording.breaks, recording.step) == (breaks, step)
    assert recording.pictures == tuple(f"f_{number}.png" for number in numbers)


@pytest.mark.parametrize(
    "names",
    [
        ["0.04.png", "0.2.png"],
        [f"{number / 25}.png" for number in range(60)],
        [f"{number / 25:g}.png" for number in range(60)],
        [f"t={number / 25:.2f}s.png" for number in range(60)],
        [f"{number / 30}.jpg" for number in range(60)],
        [f"{number / 4}.jpg" for number in range(20)],
        [f"{number / 30:.2f}.jpg" for number in range(90)],
        [f"frame_{number / 25}.jpg".replace(".", ",", 1) for number in range(60)],
        [f"2023-01-02_{10 + k // 60:02d}-{k % 60:02d}-{s:02d}.png" for k in range(55, 65) for s in range(60)],
        ["9.png", "10.png", "11.png"],
        ["007.png", "8.png", "9.png", "10.png"],
        [f"shot1.{number}.png" for number in range(1, 30)],
        [f"{number}.png" for number in range(-3, 12)],
    ],
)
def test_frames_are_ordered_by_the_value_of_their_numbers(names: list[str]) -> None:
    assert only(names) == tuple(names)


def test_frames_of_one_number_are_refused() -> None:
    (recording,) = sort_pictures(["1.png", "01.png", "2.png", "3.png", "4.png"]).recordings.values()
    assert recording.problem.startswith("01.png and 1.png have the same frame number")
    both = [f"{number}.{ending}" for number in range(9) for ending in ("jpg", "png")]
    assert sizes(sort_pictures(both)) == {"*.jpg": 9, "*.png": 9}


@pytest.mark.parametrize(
    ("frame", "mask"),
    [
        ("{:04d}.jpg", "{:04d}_mask.png"),
        ("{}.png", "{}_seg.png"),
        ("{}.png", "{}-gt.png"),
        ("img_{}.png", "mask_{}.png"),
        ("frame_{}_endo.png", "frame_{}_endo_color_mask.png"),
        ("a{}.png", "a{} Ground Truth.png"),
        ("frame{:03d}.png", "frame{:03d}_labelIds.png"),
    ],
)
def test_masks_beside_their_frames_are_left_out(frame: str, mask: str) -> None:
    frames, masks = ([name.format(number) for number in range(12)] for name in (frame, mask))
    found = sort_pictures([*frames, *masks[::2]])
    (recording,) = found.recordings.values()
    assert (list(recording.pictures), sorted(found.masks)) == (frames, sorted(masks[::2]))
    assert not recording.plain
    (alone,) = sort_pictures(masks).recordings.values()
    assert (alone.named_as_masks, len(alone.pictures)) == (True, 12)


def test_a_plain_folder_is_all_its_pictures_in_natural_order() -> None:
    names = [f"frame{number}.png" for number in range(12)]
    (recording,) = sort_pictures(names).recordings.values()
    assert recording.plain
    assert recording.pictures == tuple(names)
    (recording,) = sort_pictures([*names, "cover.png"]).recordings.values()
    assert not recording.plain
