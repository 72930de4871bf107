"""medsora.data.reading.find, medsora.data.checking.scan, medsora.data.checking.check: folders of pictures:
stills of many videos, posters, gaps, frames named by seconds, as the check tells them and as clips have them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsora.data.checking.check import CheckReport, check_folder
from medsora.data.checking.view import check_totals
from medsora.data.clips import ClipDataset, ClipSpec, StoredVideo, StoredVideos
from medsora.data.reading.video_io import read_frames, read_last_frames
from medsora.data.split import draw_split, split_by_csv, split_by_video
from medsora.errors import BadInput
from medsora.training.cache.fingerprint import clips_digest
from tests.support.video_files import encode, moving_frames, write_pictures

SPEC = ClipSpec(frames=4, interval=1, size=(48, 64), images=3, flip=False)


def check(root: Path) -> CheckReport:
    return check_folder(root, frames=5, interval=1, cache_path=root.parent / "check.json")


def videos(report: CheckReport) -> dict[str, list[tuple[int, int]]]:
    """Return the runs of frames of every source that gives a clip."""
    return {video.source.name: video.scan.runs() for video in report.usable}


def test_stills_of_many_videos_in_one_folder_are_a_video_each(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    frames = moving_frames(30)
    for number in range(3):
        part = frames[10 * number : 10 * number + 10]
        write_pictures(root / "polyp", (f"{number}a4c8da942d9_{k}.png" for k in range(1000, 2000, 100)), part)
    write_pictures(root / "polyp", ["cover.jpg", "overview.png"], moving_frames(2))
    for _ in range(2):  # decoded, then recalled
        report = check(root)
        assert videos(report) == {f"polyp/{number}a4c8da942d9_*.png": [(0, 10)] for number in range(3)}
    notes = "\n".join(report.complaints())
    assert "1 folder with the pictures of 3 recordings" in notes
    assert (
        "posters or thumbnails are left out: 1 in 1 folder, the first: polyp (1 such as cover.jpg)" in notes
    )
    assert "other pictures are left out: 1 in 1 folder, the first: polyp (1 such as overview.png)" in notes
    assert (
        "rise by more than 1, which is no gap: 3 sources, the first: polyp/0a4c8da942d9_*.png by 100" in notes
    )
    spec = ClipSpec(frames=4, interval=1, size=(48, 64), images=0, flip=False, labels="folders")
    clips = ClipDataset(report, spec, holdout=0)
    assert clips.labels.names == ("polyp",)
    for index in range(len(clips)):
        video, window = clips.windows[index]
        pixels = (
            ((clips.fixed_clip(index)["video"].movedim(1, -1) + 1) * 127.5).round().numpy().astype(np.uint8)
        )
        first = 10 * video + window.start
        assert np.array_equal(pixels, frames[first : first + 5])


def test_posters_beside_videos_are_no_frames(tmp_path: Path) -> None:
    root = tmp_path / "films"
    for number in range(12):
        encode(root / f"case{number:02d}.mkv", moving_frames(8), "ffv1", "bgr0")
    write_pictures(root, "case{:02d}.jpg", moving_frames(12))
    report = check(root)
    assert set(videos(report)) == {f"case{number:02d}.mkv" for number in range(12)}
    assert "posters or thumbnails are left out: 12 in 1 folder, the first: films (12 such as case00.jpg)" in (
        check_totals(report).replace("Posters", "posters")
    )


def test_a_picture_of_another_size_is_no_frame(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "corpus" / "run", "{:03d}.png", moving_frames(20)).parent
    write_pictures(root / "run", ["007.png"], moving_frames(1, 96, 96))
    report = check(root)
    assert videos(report) == {"run": [(0, 7), (8, 20)]}
    assert "1 picture of another size is left out: 007.png" in "\n".join(report.complaints())


def test_no_clip_crosses_a_change_of_size(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "corpus" / "run", "{:03d}.png", moving_frames(20)).parent
    later = (f"{number:03d}.png" for number in range(20, 32))
    write_pictures(root / "run", later, moving_frames(12, 96, 96))
    report = check(root)
    assert videos(report) == {"run": [(0, 20), (20, 32)]}
    assert "which change 1 times; no clip crosses a change" in "\n".join(report.complaints())


@pytest.mark.parametrize("kind", ["names", "sizes"])
def test_unrelated_stills_are_joint_images_only(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "corpus"
    random = np.random.default_rng(0)
    for number in range(30):
        size = (48, 64) if kind == "names" else random.integers(40, 90, 2)
        name = f"{random.bytes(9).hex()}x.png" if kind == "names" else f"{number:03d}.png"
        write_pictures(root / "stills", [name], random.integers(0, 255, (1, *size, 3), dtype=np.uint8))
    for number in range(4):
        encode(root / f"v{number}.mkv", moving_frames(12)[:, :, ::-1] // (number + 1), "ffv1", "bgr0")
    report = check(root)
    assert set(videos(report)) == {f"v{number}.mkv" for number in range(4)}
    assert [(still.source.name, still.windows) for still in report.stills] == [("stills", ())]
    assert report.stills[0].problem.startswith("30 single pictures, not the frames of one video")
    (note,) = [line for line in report.complaints() if "single" in line]
    assert note.startswith("30 pictures are single ones")
    assert "joint images only: 1 source, the first: stills" in note
    for seed in range(8):  # whichever videos are held out, the pictures never are all that is
        clips = ClipDataset(report, SPEC, holdout=0.25, seed=seed)
        assert len(clips.videos) == 3
        drawn = {image.video for index in range(len(clips)) for image in clips.choose(0, index).images}
        assert drawn == {0, 1, 2, 3}
        assert clips[0, 0]["images"].shape == (3, 3, 48, 64)
    held_out = ClipDataset(report, SPEC, split="held-out", holdout=0.25)
    assert [source.source.name for source in held_out.sources] == [v.source.name for v in held_out.videos]
    stage_1 = ClipSpec(frames=4, extra_frame=False, interval=1, size=(48, 64), images=0)
    report = check_folder(root, frames=4, interval=1, cache_path=tmp_path / "check.json")
    assert ClipDataset(report, stage_1, holdout=0.25, seed=3).sides.sides["stills"] == "train"


def test_stills_follow_their_patient_to_the_held_out_side(tmp_path: Path) -> None:
    names = [f"P{number}/v.mkv" for number in range(9)]
    for seed in range(9):
        sides = draw_split([*names, "P3/stills"], 0.1, seed, group="folder", stills={"P3/stills"}).sides
        assert sides["P3/stills"] == sides["P3/v.mkv"]
        assert list(sides.values()).count("held-out") == 1 + (sides["P3/v.mkv"] == "held-out")


def test_no_clip_crosses_a_gap_in_the_frame_numbers(tmp_path: Path) -> None:
    numbers = [*range(12), *range(20, 29), *range(40, 43)]
    root = tmp_path / "corpus"
    write_pictures(root / "run", (f"frame_{number:04d}.png" for number in numbers), moving_frames(24))
    fives = (f"{number}.png" for number in range(0, 60, 5))
    write_pictures(root / "fives", fives, moving_frames(12)[:, ::-1])
    report = check(root)
    assert videos(report) == {"fives": [(0, 12)], "run": [(0, 12), (12, 21), (21, 24)]}
    starts = {
        window.start + k
        for v in report.usable[1:]
        for window in v.windows
        for k in range(window.latest - window.start + 1)
    }
    assert starts == {*range(8), *range(12, 17)}
    notes = "\n".join(report.complaints())
    assert (
        "no clip crosses a gap in the frames' numbers: 2 in 1 source, the first: run between frame_0011.png "
        "and frame_0020.png" in notes
    )
    assert "1 source, the first: fives by 5" in notes


def test_frames_named_by_seconds_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "corpus"
    frames = moving_frames(40)
    write_pictures(root / "run", (f"{number / 25}.png" for number in range(40)), frames)
    (video,) = check(root).usable
    assert video.scan.runs() == [(0, 40)]
    assert video.scan.applied == ("frames ordered by value (0.0.png, 0.04.png, 0.08.png, ...)",)
    pictures = video.source.pictures
    assert np.array_equal(read_frames(root / "run", 3, 5, 2, pictures=pictures), frames[3:12:2])
    assert np.array_equal(read_frames(root / "run"), frames)
    monkeypatch.chdir(root)
    assert np.array_equal(read_frames("run"), frames)
    assert np.array_equal(read_last_frames(root / "run", 3), frames[-3:])


def test_frames_of_one_number_are_refused(tmp_path: Path) -> None:
    names = ["1.png", "01.png", *(f"{k}.png" for k in range(2, 20))]
    root = write_pictures(tmp_path / "corpus" / "run", names, moving_frames(20)).parent
    (line,) = check(root).complaints()
    assert line.startswith("left out run: 01.png and 1.png have the same frame number; rename or remove")


def test_the_digest_of_clips_covers_which_pictures_are_read(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "corpus" / "run", "{:03d}.png", moving_frames(12)).parent
    whole = clips_digest(ClipDataset(check(root), SPEC, holdout=0))
    write_pictures(root / "run", ["cover.jpg"], moving_frames(1))
    without_cover = clips_digest(ClipDataset(check(root), SPEC, holdout=0))
    write_pictures(root / "run", ["cover.jpg"], moving_frames(1)[:, ::-1])
    assert clips_digest(ClipDataset(check(root), SPEC, holdout=0)) == without_cover
    (root / "run" / "cover.jpg").unlink()
    assert clips_digest(ClipDataset(check(root), SPEC, holdout=0)) == whole


def test_tables_name_recordings_by_their_prefix(tmp_path: Path) -> None:
    names = ["polyp/P1_*.jpg", "polyp/P2_*.jpg", "normal/P2_*.jpg", "a.mkv"]
    table = tmp_path / "split.csv"
    table.write_text("file,split\nP1,test\npolyp/P2,train\nnormal/P2_*.jpg,train\na,train\n")
    expected = dict(zip(names, ("held-out", "train", "train", "train"), strict=True))
    assert split_by_csv(table, names, 0.1, 0) == expected
    table.write_text("file,split\nP2,test\n")
    with pytest.raises(BadInput, match=r"'P2' may be polyp/P2_\*\.jpg or normal/P2_\*\.jpg; give"):
        split_by_csv(table, names, 0.1, 0)


def test_resumed_runs_keep_the_side_of_a_folder_that_was_one_video(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    for number in range(2):
        write_pictures(root / "polyp", f"v{number}_{{}}.png", moving_frames(12) // (number + 1))
    for number in range(3):
        encode(root / f"v{number}.mkv", moving_frames(12)[:, :, ::-1] // (number + 1), "ffv1", "bgr0")
    report = check(root)
    content = report.reports[0].content
    for side in ("train", "held-out"):
        before = {"polyp": StoredVideo(side, content)}
        before |= {f"v{number}.mkv": StoredVideo("train", content) for number in range(3)}
        clips = ClipDataset(report, SPEC, split="all", stored=StoredVideos(before), group="(v)")
        assert [clips.sides.sides[f"polyp/v{number}_*.png"] for number in range(2)] == [side, side]
    for seed in range(9):  # a run of an earlier version, which stored no list, drew folders
        sides = ClipDataset(report, SPEC, split="all", stored=StoredVideos(None), seed=seed).sides.sides
        whole = split_by_video(["polyp", "v0.mkv", "v1.mkv", "v2.mkv"], 0.1, seed)
        assert {sides[f"polyp/v{number}_*.png"] for number in range(2)} == {whole["polyp"]}
        assert sides["v1.mkv"] == whole["v1.mkv"]


def test_a_folder_of_nothing_but_posters_and_masks_is_reported(tmp_path: Path) -> None:
    write_pictures(tmp_path / "films", ["cover.jpg"], moving_frames(1))
    encode(tmp_path / "films" / "v.mkv", moving_frames(2), "ffv1", "bgr0")
    report = check(tmp_path / "films")
    assert "posters or thumbnails are left out: 1 in 1 folder" in "\n".join(report.complaints())
    (tmp_path / "films" / "v.mkv").rename(tmp_path / "v.mkv")
    assert check(tmp_path / "films").reports[0].problem.startswith("too short")
