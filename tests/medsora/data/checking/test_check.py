"""medsora.data.checking.check, medsora.data.checking.cache, medsora.data.reading.find,
medsora.data.reading.decoding: everything usable in a folder is found, everything else is named with its
reason.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from medsora.data.checking import check as check_module
from medsora.data.checking.cache import default_cache_path
from medsora.data.checking.check import CheckReport, SourceReport, check_folder
from medsora.data.checking.scan import CANNOT_BE_READ, CHANGED, CHECK_FAILS, TAKES_LONGER, Scan
from medsora.data.checking.view import check_totals
from medsora.data.checking.windows import Window
from medsora.data.reading.find import Source, find_sources
from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from medsora.runtime.digests import unsealed
from medsora.sampling.synthetic import synthetic_tags
from tests.support.video_files import cut, encode, encode_named, moving_frames, write_pictures


def check(folder: Path, cache: Path, **options: int) -> CheckReport:
    return check_folder(folder, cache_path=cache, **{"frames": 5, "interval": 2, **options})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "check.json"


def test_nested_and_mixed_folders_are_one_corpus(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "corpus"
    write_pictures(root / "patient 1" / "run", "frame{}.jpg", moving_frames(12))
    write_video(root / "patient 2" / "a.mkv", moving_frames(20), 25, lossless=True)
    write_video(root / "B.MP4", moving_frames(9, 32, 32), 25)
    encode_named(root / "deep" / "er" / "x", "palette.gif", moving_frames(18))
    (root / "notes.txt").write_text("nothing")
    (root / ".hidden.mp4").touch()
    report = check(root, cache)
    assert [video.source.name for video in report.usable] == [
        "B.MP4",
        "deep/er/x/palette.gif",
        "patient 1/run",
        "patient 2/a.mkv",
    ]
    assert [len(video.windows) for video in report.usable] == [1, 2, 1, 2]
    assert [video.scan.frames for video in report.usable] == [9, 18, 12, 20]
    assert (report.clips, report.other_files, report.bad, report.complaints()) == (
        6,
        ("notes.txt",),
        (),
        [],
    )


def test_a_video_that_is_called_a_picture(tmp_path: Path, cache: Path) -> None:
    """FFmpeg goes by a drawing's ending where the content leaves a doubt, such as a program stream's."""
    folder = tmp_path / "corpus"
    encode_named(folder, "mpeg2.mpg", moving_frames(30)).rename(folder / "film.svg")
    (report,) = check(folder / "film.svg", cache).reports
    assert report.problem.startswith("taken for a picture by its ending, .svg; rename it")
    totals = check_totals(check(folder, cache))
    assert totals.endswith(" 1 file without a video or image suffix is ignored (film.svg).")
    for name in ("labels.csv", "b.txt", "a/c.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert check_totals(check(folder, cache)).endswith(
        " 4 files without a video or image suffix are ignored (a/c.txt, b.txt, film.svg, ...)."
        " To train with the labels in labels.csv, set data.labels=labels.csv."
    )


def test_generated_videos_are_named(tmp_path: Path, cache: Path) -> None:
    tags = synthetic_tags("a test", {})
    write_video(tmp_path / "real.mp4", moving_frames(30), 8, metadata={"comment": "a recording"})
    assert check(tmp_path, cache).generated_note is None
    write_video(tmp_path / "a.mp4", moving_frames(31), 8, metadata=tags)
    write_video(tmp_path / "b.mkv", moving_frames(40), 8, metadata={"comment": tags["comment"]})
    write_video(tmp_path / "c.mov", moving_frames(50), 8, metadata={"synthetic": "true"})
    note = "enerated by MedSora, not recorded: 3 videos (a.mp4, b.mkv, c.mov); leave them out"
    for _ in range(2):  # the second time from the cache
        report = check(tmp_path, cache)
        assert f"g{note}" in report.complaints()
        assert f" G{note}." in check_totals(report)


def test_pictures_are_taken_in_natural_order(tmp_path: Path) -> None:
    write_pictures(tmp_path / "run", "frame{}.png", moving_frames(12))
    assert np.array_equal(read_frames(tmp_path / "run"), moving_frames(12))
    assert np.array_equal(read_frames(tmp_path / "run", 2, 4, 3), moving_frames(12)[2::3])


def test_sixteen_bit_and_grey_pictures_keep_their_brightness(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    write_pictures(tmp_path / "run", "{}.png", [grey, (grey / 257).round().astype(np.uint8)])
    sixteen, eight = read_frames(tmp_path / "run").astype(int)
    assert np.abs(sixteen - eight).max() <= 1


def absurd_mp4(path: Path, width: int, height: int) -> None:
    """Write a small video whose headers claim `width` x `height` pixels."""
    encode(path, moving_frames(30), "mjpeg", "yuvj420p")
    content = path.read_bytes()
    at = content.index(b"mp4v") + 4 + 24  # width and height in the sample description
    assert struct.unpack(">HH", content[at : at + 4]) == (64, 48)
    content = content[:at] + struct.pack(">HH", width, height) + content[at + 4 :]
    start = content.index(b"\xff\xc0") + 5  # and in every picture
    while start > 4:
        content = content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]
        start = content.find(b"\xff\xc0", start) + 5
    path.write_bytes(content)


def test_every_bad_file_has_its_reason(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "corpus"
    encode(root / "good.mp4", moving_frames(30))
    (root / "text.mp4").write_text("this is not a video\n" * 30)
    (root / "empty.avi").touch()
    (root / "noise.webm").write_bytes(np.random.default_rng(0).bytes(5000))
    cut(encode(root / "no index.mp4", moving_frames(60)), 0.7)
    encode(root / "short.mp4", moving_frames(4))
    absurd_mp4(root / "absurd.mp4", 65000, 65000)
    absurd_mp4(root / "wide.mp4", 60000, 500)
    (root / "nowhere.mp4").symlink_to(root / "absent.mp4")
    (root / "itself.mp4").symlink_to(root / "itself.mp4")
    os.mkfifo(root / "pipe.mp4")
    (root / "pictures").mkdir()
    (root / "pictures" / "0.png").write_text("no picture")
    Image.fromarray(moving_frames(1)[0]).save(root / "pictures" / "big.bmp")
    header = bytearray((root / "pictures" / "big.bmp").read_bytes())
    header[18:26] = struct.pack("<ii", 60000, 60000)
    (root / "pictures" / "big.bmp").write_bytes(header)
    report = check(root, cache)
    assert [video.source.name for video in report.usable] == ["good.mp4"]
    problems = {video.source.name: video.problem for video in report.bad}
    reasons = {
        "text.mp4": "text file",
        "empty.avi": "0 bytes",
        "noise.webm": "not a video",
        "no index.mp4": "truncated",
        "short.mp4": "too short: 4 frames in a row, a clip spans 9",
        "absurd.mp4": "no believable picture size",
        "wide.mp4": "60000x500",
        "nowhere.mp4": "leads nowhere",
        "itself.mp4": "leads nowhere|cannot be read",
        "pipe.mp4": "not a regular file",
        "pictures": "none of its 2 pictures decodes",
    }
    assert problems.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert any(part in problems[name] for part in reason.split("|")), (name, problems[name])
    assert len(report.complaints()) == len(reasons)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "mpeg4.avi", "vp9.webm", "wmv2.wmv", "ffv1.mkv"])
def test_a_truncated_video_serves_as_far_as_it_decodes_and_is_reported(
    tmp_path: Path, cache: Path, name: str
) -> None:
    root = tmp_path / "corpus"
    frames = moving_frames(90, 96, 128)
    if name.endswith(".mp4"):
        path = encode(root / name, frames, options={"g": "12", "bf": "3"}, movflags="faststart")
    else:
        path = encode_named(root, name, frames)
    cut(path, 0.6)
    (video,) = check(root, cache).usable
    assert 9 <= video.scan.frames < 80
    assert "truncated" in " ".join(video.scan.remarks), video.scan.remarks
    if name.endswith((".mp4", ".avi")):
        assert f"header says 90 frames, {video.scan.frames} decode" in video.scan.remarks[0]
    assert len(read_frames(path, video.scan.frames - 5, 5, seek_points=video.scan.seek_points)) == 5


def test_clips_keep_away_from_damage_inside_a_video(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "corpus"
    frames = moving_frames(150)
    path = encode(root / "a.mkv", frames, options={"g": "12", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[70:72]:
        content[position + 8 : position + size - 8] = b"\xaa" * (size - 16)
    path.write_bytes(content)
    (video,) = check(root, cache).usable
    before, after = video.scan.runs()
    assert before[0] == 0
    assert 36 <= before[1] <= 60
    assert 80 <= after[0] <= 96
    assert after[1] == video.scan.frames == 148
    assert "damaged near frame 7" in video.scan.remarks[0]
    in_order = read_frames(path)
    for window in video.windows:
        clip = read_frames(path, window.start, 5, 2, seek_points=video.scan.seek_points)
        assert np.array_equal(clip, in_order[window.start : window.start + 9 : 2])
        shift = 0 if window.start < 70 else 2
        first = frames[window.start + shift]
        assert np.abs(clip[0].astype(int) - first).mean() < 10


def test_a_broken_picture_splits_its_folder(tmp_path: Path, cache: Path) -> None:
    write_pictures(tmp_path / "corpus" / "run", "frame{}.png", moving_frames(30))
    cut(tmp_path / "corpus" / "run" / "frame12.png", 0.5)
    (video,) = check(tmp_path / "corpus", cache).usable
    assert video.scan.runs() == [(0, 12), (13, 30)]
    assert [tuple(window) for window in video.windows] == [(0, 3), (13, 21)]
    assert "1 of 30 pictures do not decode, the first: frame12.png" in video.scan.remarks[0]


def test_link_loops_are_entered_once(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_video(root / "a" / "a.mkv", moving_frames(9), 8, lossless=True)
    (root / "a" / "up").symlink_to(root)
    elsewhere = tmp_path / "elsewhere"
    write_video(elsewhere / "b.mkv", moving_frames(9), 8, lossless=True)
    (root / "linked").symlink_to(elsewhere)
    (root / "twice").symlink_to(elsewhere)
    (root / "a" / "corpus").symlink_to(root / "a")
    (root / "corpus").symlink_to(root)
    found = find_sources(root)
    assert [source.name for source in found.sources] == ["a/a.mkv", "linked/b.mkv"]
    first = {"a/corpus": "a", "a/up": "corpus", "corpus": "corpus", "twice": "linked"}
    assert found.unlisted == {name: f"the same folder as {one}, by a link" for name, one in first.items()}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "corpus"
    write_video(root / "a.mkv", moving_frames(9), 8, lossless=True)
    write_video(root / "closed" / "b.mkv", moving_frames(9), 8, lossless=True)
    (root / "a.mkv").chmod(0)
    (root / "closed").chmod(0)
    report = check(root, cache)
    (root / "closed").chmod(0o700)
    assert "Permission denied" in report.bad[0].problem
    assert report.unlisted == {"closed": "Permission denied"}


def test_a_second_check_decodes_only_what_changed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "corpus"
    for name in ("a", "b"):
        write_video(root / f"{name}.mkv", moving_frames(20), 8, lossless=True)
    write_pictures(root / "run", "frame{}.png", moving_frames(12))
    (root / "text.mp4").write_text("text")
    first = check(root, cache)
    scanned: list[str] = []
    scan_source = check_module.scan_source

    def noted(source):
        scanned.append(source.name)
        return scan_source(source)

    monkeypatch.setattr(check_module, "scan_source", noted)
    assert check(root, cache) == first
    assert scanned == []
    assert check(root, cache, frames=8).usable[0].span == 15
    assert scanned == []
    write_video(root / "b.mkv", moving_frames(30), 8, lossless=True)
    Image.fromarray(moving_frames(1)[0]).save(root / "run" / "frame99.png")
    second = check(root, cache)
    assert sorted(scanned) == ["b.mkv", "run"]
    assert [video.scan.frames for video in second.usable] == [20, 30, 13]


def test_a_file_that_is_replaced_while_it_is_scanned_is_scanned_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that is copied meanwhile: the check meets its first part."""
    root = tmp_path / "corpus"
    write_video(root / "a.mkv", moving_frames(20), 8, lossless=True)
    write_pictures(root / "run", "frame{}.png", moving_frames(12))
    scan_source = check_module.scan_source

    def overtaken(source: Source) -> Scan:
        scan = scan_source(source)
        if source.name == "a.mkv":
            write_video(root / "a.mkv", moving_frames(30), 8, lossless=True)
        else:
            Image.fromarray(255 - moving_frames(12)[11]).save(root / "run" / "frame11.png")
        return scan

    with monkeypatch.context() as patched:
        patched.setattr(check_module, "scan_source", overtaken)
        before = check(root, cache).reports
    after = check(root, cache).reports
    assert [report.scan.frames for report in (*before, *after)] == [20, 12, 30, 12]
    assert before[1].scan.thumbnails != after[1].scan.thumbnails


def test_a_check_that_ran_out_of_time_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "corpus" / "a.mkv", moving_frames(20), 8, lossless=True)
    with monkeypatch.context() as patched:
        patched.setattr("medsora.data.checking.scan.LIMIT_S", -1000.0)
        (report,) = check(tmp_path / "corpus", cache).reports
        assert report.problem.startswith("decoding takes longer than")
    (report,) = check(tmp_path / "corpus", cache).reports
    assert (report.problem, report.scan.frames) == (None, 20)


class HalfReadable(io.FileIO):
    """A file of which the system refuses to read what lies behind `part` of it."""

    def __init__(self, path: Path, part: float, error: int = errno.EIO) -> None:
        super().__init__(path)
        self.limit, self.error = part * path.stat().st_size, error

    def read(self, size: int = -1) -> bytes:
        if self.tell() + size > self.limit:
            raise OSError(self.error, os.strerror(self.error))
        return super().read(size)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_open_gop.mkv", "h264.ts", "mjpeg.avi"])
@pytest.mark.parametrize(("opening", "part"), [(1, 0.0), (1, 0.6), (2, 0.0), (2, 0.6)])
def test_a_read_that_fails_is_no_damage_and_the_next_check_reads_again(
    name: str, opening: int, part: float, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the header, in the middle of a video, and when the scan reopens it for trial seeks."""
    path = encode_named(tmp_path / "videos", name, moving_frames(60))
    opened, count = av.open, itertools.count(1)

    def failing(url: str, **options: Any) -> av.container.InputContainer:
        fails = next(count) == opening
        return (
            opened(HalfReadable(path, part), buffer_size=512, **options) if fails else opened(url, **options)
        )

    with monkeypatch.context() as patched:
        patched.setattr(av, "open", failing)
        (report,) = check(tmp_path / "videos", cache).reports
        assert report.problem == "cannot be read: Input/output error"
    (report,) = check(tmp_path / "videos", cache).reports
    assert (report.problem, report.scan.frames) == (None, 60)


@pytest.mark.parametrize("name", ["ffv1.mkv", "vp9.webm"])
def test_a_matroska_file_cut_within_its_header_is_damaged(name: str, tmp_path: Path, cache: Path) -> None:
    """FFmpeg calls the end of such a file an input/output error, too."""
    path = encode_named(tmp_path / "videos", name, moving_frames(12))
    path.write_bytes(path.read_bytes()[:300])
    (report,) = check(tmp_path / "videos", cache).reports
    assert report.problem == "truncated: it ends after 300 bytes, within its header"
    assert report.scan.is_lasting


@pytest.mark.parametrize(
    "error", [errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENODATA, errno.EUCLEAN]
)
def test_a_server_or_a_disk_that_is_gone_is_no_damage(
    error: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = encode_named(tmp_path / "videos", "h264_b_frames.mp4", moving_frames(12)), av.open
    with monkeypatch.context() as patched:
        patched.setattr(av, "open", lambda url, **options: opened(HalfReadable(path, 0.0, error), **options))
        (report,) = check(tmp_path / "videos", cache).reports
        assert report.problem == f"cannot be read: {os.strerror(error)}"
    (report,) = check(tmp_path / "videos", cache).reports
    assert (report.problem, report.scan.frames) == (None, 12)


@pytest.mark.parametrize("failing", [["frame3.png"], [f"frame{number}.png" for number in range(12)]])
def test_pictures_that_cannot_be_read_are_tried_again_by_the_next_check(
    failing: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "run", "frame{}.png", moving_frames(12))
    opened = Image.open

    def refusing(path: Path, **options: Any) -> Image.Image:
        if path.name in failing:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", refusing)
        (report,) = check(tmp_path / "run", cache).reports
        found = "; ".join((report.scan.problem or "", *report.scan.remarks))
        assert f"{failing[0]} cannot be read: Permission denied" in found
    (report,) = check(tmp_path / "run", cache).reports
    assert (report.problem, report.scan.frames, report.scan.broken, report.scan.remarks) == (None, 12, (), ())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"scans": {"x": 3}}', "\x00\xff"])
def test_a_broken_cache_is_made_again(tmp_path: Path, cache: Path, content: str) -> None:
    write_video(tmp_path / "corpus" / "a.mkv", moving_frames(20), 8, lossless=True)
    expected = check(tmp_path / "corpus", cache)
    cache.write_text(content, encoding="latin-1")
    assert check(tmp_path / "corpus", cache) == expected
    assert len(json.loads(cache.read_text())["scans"]) == 1
    cache.write_text(re.sub(r'"frames": \d', '"frames": 9', cache.read_text()))
    assert check(tmp_path / "corpus", cache) == expected
    entries = unsealed(json.loads(cache.read_text()))
    for entry in entries["scans"].values():
        entry["scan"] = {"frames": "many"}
    cache.write_text(json.dumps(entries))
    assert check(tmp_path / "corpus", cache) == expected
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "corpus" / "a.mkv", moving_frames(20), 8, lossless=True)
    (tmp_path / "file").touch()
    assert check(tmp_path / "corpus", tmp_path / "file" / "check.json").clips == 2
    assert "cannot be written" in caplog.text


def test_a_folder_without_clips_stops_with_one_sentence(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        check(tmp_path / "absent", cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no videos"):
        check(tmp_path / "empty", cache).require_clips()
    (tmp_path / "empty" / "videos.zip").touch()
    with pytest.raises(BadInput, match=r"of pictures; it holds 1 file of other kinds, such as videos\.zip\."):
        check(tmp_path / "empty", cache).require_clips()
    encode(tmp_path / "one" / "a.mp4", moving_frames(5))
    with pytest.raises(
        BadInput, match=r"no usable clip .* a\.mp4: too short: 5 frames in a row, a clip spans 9"
    ):
        check(tmp_path / "one", cache).require_clips()


def test_each_folder_has_a_cache_of_its_own_by_whichever_path_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = default_cache_path("clips")
    assert found.parent == Path("runs/cache")
    assert found == default_cache_path(tmp_path / "clips") == default_cache_path("other/../clips")
    assert found != default_cache_path("other")


def test_a_scan_lasts_unless_a_read_or_the_check_itself_failed() -> None:
    assert Scan("mov", "h264", 64, 64, 25, 9, problem="too short").is_lasting
    for failed in (CANNOT_BE_READ, TAKES_LONGER, CHECK_FAILS, CHANGED):
        assert not Scan("mov", "h264", 64, 64, 25, 9, problem=f"it {failed}: why").is_lasting
        assert not Scan("mov", "h264", 64, 64, 25, 9, remarks=(f"one picture {failed}",)).is_lasting


def test_folders_that_decide_the_split_are_named() -> None:
    scan = Scan("mov", "h264", 64, 64, 25, 9)

    def check_of(*names: str) -> CheckReport:
        sources = (Source(Path(name), name) for name in names)
        reports = (SourceReport(source, scan, (Window(0, 0),), 9) for source in sources)
        return CheckReport(Path(), 9, 1, tuple(reports), {}, ())

    assert "Folders named train, val or test" in check_totals(check_of("train/a.mp4", "val/b.mp4"))
    for names in (("a.mp4", "b.mp4"), ("train/a.mp4", "train/b.mp4")):
        assert "olders named" not in check_totals(check_of(*names))


def test_the_size_that_is_used_is_what_the_crop_leaves() -> None:
    margins = (0.1, 0.2, 0.25, 0.0)  # top, bottom, left, right
    scan = Scan("mov", "h264", 400, 300, 25, 9, margins=margins)
    report = SourceReport(Source(Path("a.mp4"), "a.mp4"), scan, (), 8, margins)
    assert report.used_size == (210, 300)
