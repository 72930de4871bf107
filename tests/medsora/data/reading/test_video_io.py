"""medsora.data.reading.video_io, medsora.data.reading.decoding: frames in and out of files: round trips,
exact seeks in any file, little memory, plain refusals.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from medsora.data.checking.scan import scan_source
from medsora.data.reading import decoding
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import probe, read_frames, write_video
from tests.support.video_files import CODECS, cut, encode, encode_named, moving_frames

FRAMES = 90


@pytest.fixture
def decoded_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one entry for every frame decoded."""
    decoded: list[int] = []
    frames = decoding.VideoReader.frames

    def counted(reader: decoding.VideoReader):
        for frame in frames(reader):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding.VideoReader, "frames", counted)
    return decoded


def test_lossless_video_comes_back_bit_for_bit(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 33, 47, 3), dtype=np.uint8)
    write_video(tmp_path / "new" / "a.mkv", frames, 12.5, lossless=True, metadata={"seed": 3, "note": "häh"})
    info = probe(tmp_path / "new" / "a.mkv")
    assert (info.codec, info.fps, info.width, info.height) == ("ffv1", 12.5, 47, 33)
    assert (info.metadata["seed"], info.metadata["note"]) == ("3", "häh")
    assert np.array_equal(read_frames(tmp_path / "new" / "a.mkv"), frames)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mkv"]


def test_viewing_video_is_what_browsers_play_and_looks_the_same(tmp_path: Path) -> None:
    frames = moving_frames(20)
    write_video(tmp_path / "a.mp4", frames, 8, metadata={"seed": 3})
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.format.name == "yuv420p"
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.header_frames, info.metadata["seed"]) == ("h264", 20, "3")
    assert np.abs(read_frames(tmp_path / "a.mp4").astype(int) - frames).mean() < 4


def test_a_video_has_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path,
) -> None:
    """FFmpeg's default takes as many threads as there are cores, and H.264's bytes depend on their number."""
    frames, usual = moving_frames(20, 256, 256), set(os.sched_getaffinity(0))
    write_video(tmp_path / "all.mp4", frames, 8)
    assert len(usual) > 1 or pytest.skip("there is one core only")
    os.sched_setaffinity(0, {min(usual)})
    try:
        write_video(tmp_path / "one.mp4", frames, 8)
    finally:
        os.sched_setaffinity(0, usual)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "all.mp4").read_bytes()


def test_odd_sides_gain_a_row_and_a_column(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_frames(3, 33, 47), 8)
    assert read_frames(tmp_path / "a.mp4").shape == (3, 34, 48, 3)


def test_a_failed_write_leaves_the_old_video_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, moving_frames(3), 8, lossless=True)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        write_video(path, np.zeros((3, 16, 16, 3)), 8, lossless=True)
    with pytest.raises(ValueError, match=r"must end in \.mkv"):
        write_video(tmp_path / "a.mp4", moving_frames(3), 8, lossless=True)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.mkv"]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_seeks_find_the_very_frames_that_decoding_in_order_finds(
    tmp_path: Path, name: str, decoded_frames: list[int]
) -> None:
    path = encode_named(tmp_path, name, moving_frames(FRAMES))
    scan = scan_source(Source(path, name))
    assert (scan.problem, scan.frames) == (None, FRAMES)
    in_order = read_frames(path)
    assert len(in_order) == FRAMES
    assert len({frame.tobytes() for frame in in_order}) == FRAMES
    for start in (0, 1, 11, 12, 13, 47, 48, 60, 77):
        decoded_frames.clear()
        span = read_frames(path, start, 5, 3, seek_points=scan.seek_points, intact=True)
        assert np.array_equal(span, in_order[start : start + 13 : 3]), start
        if scan.seek_points and not name.endswith(
            (".wmv", ".ts", ".mpg")
        ):  # these land early, and so do more
            assert len(decoded_frames) <= 13 + 12
    if name not in ("palette.gif", "h264_refresh.mp4"):  # these have one key frame, the first
        assert scan.seek_points or name.endswith(".mpg")


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_frame_numbers_are_exact_at_a_variable_frame_rate(tmp_path: Path, name: str) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(10, 120, FRAMES)).tolist()
    path = encode(tmp_path / name, moving_frames(FRAMES), options={"g": "12", "bf": "2"}, times=times)
    scan = scan_source(Source(path, name))
    assert (scan.frames, bool(scan.seek_points)) == (FRAMES, True)
    in_order = read_frames(path)
    for start in (0, 13, 50, 77):
        assert np.array_equal(
            read_frames(path, start, 5, 3, seek_points=scan.seek_points), in_order[start : start + 13 : 3]
        )


def test_a_seek_point_that_lies_is_not_believed(tmp_path: Path) -> None:
    path = encode_named(tmp_path, "h264_b_frames.mp4", moving_frames(FRAMES))
    points = scan_source(Source(path, path.name)).seek_points
    lies = [point._replace(checksum=point.checksum ^ 1) for point in points]
    shifted = [point._replace(pts=point.pts + 1) for point in points]
    expected = read_frames(path, 50, 3)
    for wrong in (lies, shifted):
        assert np.array_equal(read_frames(path, 50, 3, seek_points=wrong), expected)


PEAK_MEMORY = """
import sys
from pathlib import Path
from medsora.data.reading.find import Source
from medsora.data.checking.scan import scan_source
from medsora.data.reading.video_io import read_frames

def use(path):
    scan = scan_source(Source(Path(path), path))
    clip = read_frames(path, scan.frames - 60, 17, 3, 64, seek_points=scan.seek_points)
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    return scan.frames, clip.shape, int(peak) * 1024

_, _, before = use(sys.argv[1])
frames, shape, after = use(sys.argv[2])
print(frames, *shape, after - before)
"""


def test_a_long_video_costs_the_memory_of_one_clip(tmp_path: Path) -> None:
    options = {"g": "25", "preset": "ultrafast"}
    pattern = moving_frames(250, 96, 96)
    short = encode(tmp_path / "short.mp4", pattern[:75], options=options)
    long = encode(tmp_path / "long.mp4", np.concatenate([pattern] * 16), options=options)
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, short, long],
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # else each decoding thread keeps freed memory for itself
        capture_output=True,
        text=True,
        check=True,
    )
    *facts, more_bytes = map(int, done.stdout.split())
    assert facts == [4000, 17, 64, 64, 3]
    assert more_bytes < 32 * 2**20  # the pixels of the long video are 110 MB


def test_a_clip_decodes_its_own_span_only(tmp_path: Path, decoded_frames: list[int]) -> None:
    frames = np.concatenate([moving_frames(250)] * 4)
    path = encode(tmp_path / "long.mp4", frames, options={"g": "25", "preset": "ultrafast"})
    points = scan_source(Source(path, path.name)).seek_points
    for start in (100, 810, 940):
        decoded_frames.clear()
        read_frames(path, start, 17, 3, seek_points=points)
        assert len(decoded_frames) <= 49 + 24


FULL_DISK = """
import resource, sys
import numpy as np
from medsora.data.reading.video_io import write_video
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
frames = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
try:
    write_video(sys.argv[1], frames, 8, lossless=sys.argv[1].endswith("mkv"))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", FULL_DISK, tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / name} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_size_covers_and_crops_the_middle(tmp_path: Path) -> None:
    frames = np.zeros((2, 40, 120, 3), np.uint8)
    frames[:, :, 40:80] = 200
    write_video(tmp_path / "a.mkv", frames, 8, lossless=True)
    middle = read_frames(tmp_path / "a.mkv", size=20)
    assert middle.shape == (2, 20, 20, 3)
    assert (middle[:, :, 1:-1] == 200).all()
    assert (middle > 150).all()
    assert read_frames(tmp_path / "a.mkv", size=(10, 30)).shape == (2, 10, 30, 3)
    assert read_frames(tmp_path / "a.mkv", size=(80, 80)).shape == (2, 80, 80, 3)


def test_frames_that_do_not_exist_are_refused_by_number(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", moving_frames(10), 8, lossless=True)
    with pytest.raises(ValueError, match="frame 10 does not exist"):
        read_frames(tmp_path / "a.mkv", 4, 3, 3)
    with pytest.raises(ValueError, match="does not exist"):
        read_frames(tmp_path / "a.mkv", 10)
    with pytest.raises(ValueError, match="interval at least 1"):
        read_frames(tmp_path / "a.mkv", 0, 3, 0)


def test_a_clip_may_not_take_longer_than_its_limit(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", moving_frames(10), 8, lossless=True)
    with pytest.raises(ValueError, match="takes longer"):
        read_frames(tmp_path / "a.mkv", time_limit=0.0)


def test_an_unopenable_file_reports_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("<html>not found</html>\n" * 20)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\nhttp://example.org/a.ts\n")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "pointer.mp4").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    )
    encode(tmp_path / "cut.mp4", moving_frames(30))
    cut(tmp_path / "cut.mp4", 0.6)
    reasons = {
        "text": "text file",
        "empty": "0 bytes",
        "playlist": "text file",
        "noise": "not a video",
        "pointer": "Git LFS",
        "cut": "truncated",
        "absent": "does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"{name}.mp4: .*{reason}"):
            probe(tmp_path / f"{name}.mp4")
