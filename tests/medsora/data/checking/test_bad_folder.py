"""medsora.data.checking.check, medsora.data.checking.scan: a folder of 200 files, 40 of them damaged in
eleven ways, trains to its end on the good ones.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.data.checking.check import check_folder
from medsora.data.phantom import write_phantom
from medsora.data.reading.video_io import read_frames, write_video
from tests.support import tiny_training as tiny
from tests.support.video_files import cut, encode

FILES, DAMAGED = 200, 40


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """17 frames of 32x32 pixels."""
    folder = tmp_path_factory.mktemp("one")
    write_phantom(folder, 1, 17, 32, seed=0, workers=1)
    return read_frames(next(folder.glob("*.mkv")))


def absurd(path: Path, frames: np.ndarray) -> None:
    """Write a video whose headers claim 100,000 x 100,000 pixels (as far as their fields can say it)."""
    encode(path, frames, "mjpeg", "yuvj420p")
    content, huge = bytearray(path.read_bytes()), struct.pack("<II", 100_000, 100_000)
    small = struct.pack("<II", 32, 32)
    at = content.find(small)
    while at >= 0:
        content[at : at + 8] = huge
        at = content.find(small, at)
    picture = content.find(b"\xff\xc0")
    while picture >= 0:
        content[picture + 5 : picture + 9] = struct.pack(">HH", 65500, 65500)
        picture = content.find(b"\xff\xc0", picture + 9)
    path.write_bytes(content)


def huge_picture(path: Path, frames: np.ndarray) -> None:
    """Make a folder with one picture whose header claims 100,000 x 100,000 pixels."""
    path.mkdir()
    Image.fromarray(frames[0]).save(path / "0.bmp")
    header = bytearray((path / "0.bmp").read_bytes())
    header[18:26] = struct.pack("<ii", 100_000, 100_000)
    (path / "0.bmp").write_bytes(header)


def half(path: Path, frames: np.ndarray) -> None:
    write_video(path, frames, 8)
    cut(path, 0.5)


def loop(path: Path, frames: np.ndarray) -> None:
    path.symlink_to(path)


# name -> ending, what to write, and words of the reason
WAYS: dict[str, tuple[str, Callable[[Path, np.ndarray], object], str]] = {
    "cut": (".mp4", half, "truncated"),
    "zero bytes": (".mp4", lambda path, frames: path.write_bytes(bytes(5000)), "not a video"),
    "empty": (".avi", lambda path, frames: path.touch(), "0 bytes"),
    "wrong suffix": (".mp4", lambda path, frames: shutil.copy(__file__, path), "text file"),
    "a picture": (
        ".webm",
        lambda path, frames: Image.fromarray(frames[0]).save(path, "PNG"),
        "short|not a video",
    ),
    "absurd": (".avi", absurd, "believable|claims|no frame"),
    "absurd pictures": ("", huge_picture, "claims"),
    "short": (".mkv", lambda path, frames: write_video(path, frames[:3], 8, lossless=True), "too short"),
    "loop": (".mp4", loop, "leads nowhere|cannot be read"),
    "fifo": (".mp4", lambda path, frames: os.mkfifo(path), "not a regular file"),
    "noise": (
        ".mkv",
        lambda path, frames: path.write_bytes(np.random.default_rng(0).bytes(9000)),
        "not a video",
    ),
}


def good(path: Path, number: int, frames: np.ndarray) -> None:
    """Write a video that can be used, some in odd ways."""
    if number == 0:
        encode(path.with_suffix(".mkv"), frames, "ffv1", "gray16le")
    elif number == 1:
        encode(path.with_suffix(".mkv"), frames, "ffv1", "yuva444p")
    elif number == 2:
        times = [int(40 * k + 15 * (k % 3)) for k in range(len(frames))]
        encode(path.with_suffix(".mkv"), frames, times=times)
    elif number == 3:
        write_video(path.with_name("ünïcödé 内視鏡 " + "x" * 180 + ".mkv"), frames, 8, lossless=True)
    else:
        write_video(path.with_suffix(".mkv"), frames, 8, lossless=True)


@pytest.fixture
def folder(tmp_path: Path, frames: np.ndarray) -> Path:
    """The folder of 200 files."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(FILES - DAMAGED):
        if number < 5:
            good(folder / f"good-{number:03d}", number, frames)
        else:
            shutil.copy(folder / "good-004.mkv", folder / f"good-{number:03d}.mkv")
    kinds = list(WAYS.items())
    for number in range(DAMAGED):
        name, (ending, write, _) = kinds[number % len(kinds)]
        write(folder / f"bad-{number:02d} {name}{ending}", frames)
    assert len(list(folder.iterdir())) == FILES
    return folder


def test_a_folder_with_a_fifth_of_it_damaged_trains_to_its_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny.tiny_config(
        tmp_path,
        tmp_path / "clips",
        data__root=str(folder),
        train_vae__max_steps=1,
        train_vae__eval_every=100,
        data__workers=1,
    )
    run = tiny.train("vae", config)
    assert (run / "final" / "config.json").is_file()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out ")]
    assert len(lines) == DAMAGED
    for name, (_, _, words) in WAYS.items():
        of_this_way = [line for line in lines if f" {name}{WAYS[name][0]}:" in line]
        assert len(of_this_way) >= 3, (name, lines)
        for line in of_this_way:
            assert any(word in line for word in words.split("|")), line


@contextmanager
def nobody() -> Iterator[Path]:
    """Be a user who may not read everything, and give a folder that this user may write to."""
    root, folder = os.geteuid() == 0, Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        try:
            if root:
                os.seteuid(65534)
            (folder / "probe").touch(0)
        except OSError as error:
            pytest.skip(f"nobody cannot be tried here: {error}")
        if os.access(folder / "probe", os.R_OK, effective_ids=True):
            pytest.skip("this user may read everything")
        (folder / "probe").unlink()
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(folder)


def test_files_and_folders_that_may_not_be_read(frames: np.ndarray, tmp_path: Path) -> None:
    write_video(tmp_path / "readable" / "one.mkv", frames, 8, lossless=True)
    check_folder(tmp_path / "readable", frames=16, interval=1, cache_path=tmp_path / "check.json")
    with nobody() as folder:  # who may not be able to import what the lines above have
        for name in ("closed.mkv", "open.mkv", "hidden/one.mkv"):
            write_video(folder / name, frames, 8, lossless=True)
        (folder / "closed.mkv").chmod(0)
        (folder / "hidden").chmod(0)
        report = check_folder(folder, frames=16, interval=1, cache_path=folder / "check.json")
        assert [usable.source.name for usable in report.usable] == ["open.mkv"]
        complaints = sorted(report.complaints())
    assert len(complaints) == 2
    assert complaints[0].startswith("left out closed.mkv: cannot be read: Permission denied")
    assert complaints[1].startswith("left out the folder hidden: ")
