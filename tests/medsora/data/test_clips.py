"""medsora.data.clips, medsora.data.choice: the clip dataset: what an item is, that it is always the same, and
that nothing leaks or stops a run.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from medsora.data.checking import check as check_module
from medsora.data.checking.scan import Scan
from medsora.data.choice import ImageSource, draw_images
from medsora.data.clips import ClipDataset
from medsora.data.reading.decoding import SeekPoint, UnreadableVideo
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from tests.support.clip_dataset import clip_dataset
from tests.support.video_files import cut, encode, moving_frames

SIZE = 16


def numbered(count: int, video: int) -> np.ndarray:
    """Frames that say who they are: red the frame's number, green the video's, blue left or right half."""
    frames = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    frames[..., 0] = np.arange(count)[:, None, None]
    frames[..., 1] = video
    frames[:, :, SIZE // 2 :, 2] = 255
    return frames


def identity(video: torch.Tensor) -> tuple[list[int], list[int], bool]:
    """Return the frame numbers and video numbers of (F, 3, H, W), and whether it is mirrored."""
    pixels = video_to_frames(video)
    return pixels[:, 0, 0, 0].tolist(), pixels[:, 0, 0, 1].tolist(), bool((pixels[:, 0, 0, 2] == 255).all())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six lossless videos of 40 + 10 k frames, 16x16."""
    for k in range(6):
        write_video(tmp_path / "corpus" / f"v{k}.mkv", numbered(40 + 10 * k, k), 8, lossless=True)
    return tmp_path / "corpus"


def dataset(root: Path, **options: object) -> ClipDataset:
    defaults = {"frames": 4, "interval": 2, "size": SIZE, "images": 3, "split": "all"}
    return clip_dataset(root, check_cache=root.parent / "check.json", **{**defaults, **options})


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def test_an_item_matches_its_description(corpus: Path) -> None:
    data = dataset(corpus)
    assert len(data) == sum((40 + 10 * k) // 9 for k in range(6))
    for index in range(len(data)):
        item = data[7, index]
        assert item["video"].shape == (5, 3, SIZE, SIZE)
        assert item["images"].shape == (3, 3, SIZE, SIZE)
        assert (item["video"].dtype, item["index"]) == (torch.float32, index)
        frames, videos, mirrored = identity(item["video"])
        name, start = item["name"].split("@")
        number, window = data.windows[index]
        assert frames == list(range(int(start), int(start) + 10, 2))
        assert window.start <= int(start) <= window.latest
        assert (set(videos), name, mirrored) == ({number}, f"v{number}.mkv", item["flipped"])
        _, image_videos, images_mirrored = identity(item["images"])
        assert number not in image_videos
        assert len(set(image_videos)) == 3
        assert images_mirrored == mirrored


def test_epochs_jitter_and_flip_within_their_windows(corpus: Path) -> None:
    data = dataset(corpus, images=0)
    choices = [data.choose(epoch, 3) for epoch in range(60)]
    _, window = data.windows[3]
    assert {choice.start for choice in choices} == set(range(window.start, window.latest + 1))
    assert {choice.flipped for choice in choices} == {True, False}
    assert not any(dataset(corpus, flip=False).choose(epoch, 3).flipped for epoch in range(20))


def test_items_depend_on_seed_epoch_and_index_alone(corpus: Path) -> None:
    data = dataset(corpus)
    expected = {(epoch, index): data[epoch, index] for epoch in range(2) for index in range(len(data))}
    np.random.seed(1)
    torch.manual_seed(1)
    again = pickle.loads(pickle.dumps(dataset(corpus)))
    for key in reversed(expected):
        assert same(again[key], expected[key])
    assert dataset(corpus, seed=1).choose(0, 0) != data.choose(0, 0)
    starts = [dataset(corpus, images=images).choose(0, 4) for images in (0, 3)]
    assert (starts[0].start, starts[0].flipped) == (starts[1].start, starts[1].flipped)


def test_workers_change_nothing(corpus: Path) -> None:
    data = dataset(corpus)
    batches = [[(2, 5), (2, 0)], [(3, 1), (0, 7)]]
    alone = list(DataLoader(data, batch_sampler=batches, num_workers=0))
    by_workers = list(DataLoader(data, batch_sampler=batches, num_workers=2))
    for a, b in zip(alone, by_workers, strict=True):
        assert a["name"] == b["name"]
        assert torch.equal(a["video"], b["video"])
        assert torch.equal(a["images"], b["images"])
        assert a["flipped"].tolist() == b["flipped"].tolist()


def test_choices_can_be_overruled_and_loaded_apart(corpus: Path) -> None:
    data = dataset(corpus)
    choice = data.choose(0, 5, start=3, flip=True, images=[ImageSource(4, 11)])
    item = data.load(choice)
    assert identity(item["video"]) == ([3, 5, 7, 9, 11], [choice.video] * 5, True)
    assert identity(item["images"]) == ([11], [4], True)
    assert identity(data.load_images(choice.images)) == ([11], [4], False)
    fixed = [data.fixed_clip(5) for _ in range(2)]
    number, window = data.windows[5]
    assert same(*fixed)
    assert fixed[0]["name"] == f"v{number}.mkv@{window.start}"
    assert not fixed[0]["flipped"]
    assert same(data.fixed_clip(5, flip=True), data.load(data.fixed_choice(5, flip=True)))
    assert data.fixed_clip(5, images=())["images"].shape == (0, 3, SIZE, SIZE)
    images, drawn = data.image_group(8, np.random.default_rng(1))
    frames, videos, _ = identity(images)
    assert videos == drawn
    again, from_the_same = data.image_group(8, np.random.default_rng(1))
    assert torch.equal(images, again)
    assert drawn == from_the_same
    assert {*zip(videos, frames, strict=True)} <= {(video, window.start) for video, window in data.windows}


def test_clips_without_the_extra_frame_and_with_another_size(corpus: Path) -> None:
    item = dataset(corpus, extra_frame=False, size=(8, 24))[0]
    assert item["video"].shape == (4, 3, 8, 24)
    assert item["images"].shape == (3, 3, 8, 24)


def test_the_splits_share_no_video_and_no_image(corpus: Path) -> None:
    train, held_out, both = (dataset(corpus, split=s, holdout=0.3) for s in ("train", "held-out", "all"))
    names = [{video.source.name for video in data.videos} for data in (train, held_out, both)]
    assert names[0] | names[1] == names[2]
    assert not names[0] & names[1]
    assert len(names[1]) == 2
    allowed = {int(name[1]) for name in names[0]}
    for index in range(len(train)):
        assert set(identity(train[index]["images"])[1]) <= allowed


def test_a_csv_decides_the_split(corpus: Path, tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text("file,patient,split\nv0.mkv,a,train\nv1.mkv,b,test\n")
    assert [v.source.name for v in dataset(corpus, split="train", split_csv=table).videos] == ["v0.mkv"]
    assert [v.source.name for v in dataset(corpus, split="held-out", split_csv=table).videos] == ["v1.mkv"]
    table.write_text("file,split\nv9.mkv,train\n")
    with pytest.raises(BadInput, match=r"the file 'v9\.mkv' is not in the data folder"):
        dataset(corpus, split_csv=table)


def test_a_side_without_videos_is_refused_with_the_reason(corpus: Path) -> None:
    videos = list(corpus.glob("*.mkv"))
    (corpus / "test").mkdir()
    for path in videos:
        path.rename(corpus / "test" / path.name)
    reason = r"'train' \(folders named train, val or test decide the split: 6 videos .* held out\);"
    with pytest.raises(BadInput, match=reason):
        dataset(corpus, split="train", images=0)
    assert len(dataset(corpus, split="held-out", images=0).videos) == 6


def test_few_videos_give_images_with_replacement(corpus: Path) -> None:
    data = dataset(corpus, images=16)
    images = data.choose(0, 0).images
    assert len(images) == 16
    assert {image.video for image in images} == set(range(1, 6))


def test_one_video_gives_images_of_its_other_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / "corpus" / "a.mkv", numbered(40, 0), 8, lossless=True)
    with caplog.at_level(logging.WARNING):
        data = dataset(tmp_path / "corpus", images=8)
    assert caplog.text.count("only one video") == 1
    for epoch in range(20):
        choice = data.choose(epoch, 1)
        assert all(not choice.start <= image.frame < choice.start + 9 for image in choice.images)
    write_video(tmp_path / "corpus" / "a.mkv", numbered(9, 0), 8, lossless=True)
    assert dataset(tmp_path / "corpus")[0]["images"].shape == (3, 3, SIZE, SIZE)
    assert len(dataset(tmp_path / "corpus", split="held-out")) == 0


def test_images_of_long_videos_lie_near_an_entry(tmp_path: Path) -> None:
    for name in ("a", "b"):
        encode(tmp_path / "corpus" / f"{name}.mp4", moving_frames(300), options={"g": "150", "bf": "0"})
    data = dataset(tmp_path / "corpus", images=8)
    frames = {image.frame for epoch in range(40) for image in data.choose(epoch, 0).images}
    entries = [0, *(point.frame for point in data.videos[1].scan.seek_points)]
    assert len(entries) > 1
    assert len(frames) > 60
    assert all(any(0 <= frame - entry < 48 for entry in entries) for frame in frames)


def write_flow(corpus: Path) -> None:
    for path in corpus.glob("*.mkv"):
        count = len(read_frames(path))
        flow = torch.zeros(count - 1, 2, SIZE, SIZE, dtype=torch.float16)
        flow[:, 0] = torch.arange(count - 1)[:, None, None] + torch.arange(SIZE) / 32
        flow[:, 1] = 0.5
        save_file({"flow": flow}, path.with_suffix(".flow.safetensors"))


def test_exact_flow_comes_with_its_frames_and_is_mirrored_with_them(corpus: Path) -> None:
    write_flow(corpus)
    data = dataset(corpus, with_flow=True, interval=1)
    for flip in (False, True):
        item = data.load(data.choose(0, 6, flip=flip))
        start = int(item["name"].split("@")[1])
        assert (item["flow"].shape, item["flow"].dtype) == ((4, 2, SIZE, SIZE), torch.float32)
        expected = torch.arange(start, start + 4)[:, None, None] + torch.arange(SIZE) / 32
        across = expected.expand(4, SIZE, SIZE)
        assert torch.equal(item["flow"][:, 0], -across.flip(-1) if flip else across)
        assert (item["flow"][:, 1] == 0.5).all()


def test_exact_flow_that_does_not_fit_is_refused(corpus: Path) -> None:
    with pytest.raises(BadInput, match=r"has no exact flow v0\.flow\.safetensors"):
        dataset(corpus, with_flow=True, interval=1)
    write_flow(corpus)
    with pytest.raises(BadInput, match=r"data\.interval=1"):
        dataset(corpus, with_flow=True, interval=2)
    with pytest.raises(BadInput, match=r"set data\.size"):
        dataset(corpus, with_flow=True, interval=1, size=8)
    cut(corpus / "v3.flow.safetensors", 0.5)
    with pytest.raises(BadInput, match=r"v3\.flow\.safetensors cannot be read"):
        dataset(corpus, with_flow=True, interval=1)
    save_file({"flow": torch.zeros(3, 2, SIZE, SIZE)}, corpus / "v3.flow.safetensors")
    with pytest.raises(BadInput, match="holds flow of shape"):
        dataset(corpus, with_flow=True, interval=1)


def test_bad_files_are_left_out_and_listed(corpus: Path) -> None:
    (corpus / "text.mp4").write_text("text")
    encode(corpus / "short.mp4", moving_frames(5))
    data = dataset(corpus)
    assert len(data.videos) == 6
    complaints = "\n".join(data.report.complaints())
    assert "left out text.mp4: a text file" in complaints
    assert "left out short.mp4: too short" in complaints


def test_a_span_that_stops_decoding_is_replaced_by_the_next_window(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(corpus, images=0)
    broken = data.windows[4][1]

    def read(path: Path, start: int, *args: object, **options: object) -> np.ndarray:
        if path.name == "v1.mkv" and start < 9:
            raise UnreadableVideo(path, "frame 3 does not exist or does not decode")
        return read_frames(path, start, *args, **options)

    monkeypatch.setattr(check_module, "read_frames", read)
    assert (data.windows[4][0], broken.start) == (1, 0)
    with caplog.at_level(logging.WARNING):
        items = [data[3, 4] for _ in range(3)]
    assert same(items[0], data[3, 5])
    assert items[0]["index"] == 5
    assert caplog.text.count("is replaced by the next") == 1
    assert "v1.mkv" in caplog.text


def test_a_clip_that_is_kept_is_replaced_within_its_label_and_by_none_for_a_failed_read(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "labels.csv").write_text("v0.mkv,a\nv1.mkv,b\nv2.mkv,a\nv3.mkv,b\nv4.mkv,a\nv5.mkv,b\n")
    data = dataset(corpus, images=0, labels="labels.csv")
    index = next(index for index, (video, _) in enumerate(data.windows) if video == 1)
    reason = "frame 3 does not decode"

    def read(path: Path, *arguments: object, **options: object) -> np.ndarray:
        if path.name == "v1.mkv":
            raise UnreadableVideo(path, reason)
        return read_frames(path, *arguments, **options)

    monkeypatch.setattr(check_module, "read_frames", read)
    item, kept = (data.fixed_clip(index, kept=kept)["index"] for kept in (False, True))
    assert [data.windows[other][0] for other in (item, kept)] == [2, 3]
    assert data.label(kept) == data.label(index) != data.label(item)
    reason = "cannot be read: Stale file handle"
    assert data.fixed_clip(index)["index"] == item
    with pytest.raises(BadInput, match=r"v1\.mkv: cannot be read: Stale file handle; no other clip"):
        data.fixed_clip(index, kept=True)
    with pytest.raises(BadInput, match="no other clip takes its place"):
        data.image_group(80, np.random.default_rng(0))


def test_joint_images_close_to_an_entry_are_never_torn() -> None:
    points = tuple(SeekPoint(frame, frame, 0, frame) for frame in range(0, 480, 96))
    broken = (*range(95), 96, 191)  # as after damage in the first part of an interlaced video
    scans = [Scan(frames=480), Scan(frames=480, seek_points=points, broken=broken)]
    random = np.random.default_rng(0)
    drawn = {image.frame for _ in range(300) for image in draw_images(random, 8, scans, 0, (0, 9))}
    assert drawn
    assert not drawn & set(broken)


def test_a_folder_that_vanishes_stops_the_run(corpus: Path) -> None:
    data = dataset(corpus, images=0)
    for path in corpus.glob("*.mkv"):
        path.unlink()
    with pytest.raises(BadInput, match=r"the clips cannot be read any more.*does not exist"):
        data[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "test"}, "must be one of train, held-out, all"),
        ({"interval": 0}, "at least 1"),
        ({"images": -1}, "images -1 at least 0"),
        ({"frames": 60}, "no usable clip of 61 frames"),
        ({"holdout": 1.5}, "less than 1"),
        ({"size": 0}, "at least 1 pixel"),
    ],
)
def test_options_that_do_not_fit_are_refused(corpus: Path, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataset(corpus, **options)


def test_a_truncated_video_alone_is_refused(tmp_path: Path) -> None:
    cut(encode(tmp_path / "corpus" / "a.mp4", moving_frames(60)), 0.6)
    with pytest.raises(BadInput, match=r"no usable clip .* a\.mp4: truncated"):
        dataset(tmp_path / "corpus")


def test_indices_end(corpus: Path) -> None:
    data = dataset(corpus)
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[0, index]
