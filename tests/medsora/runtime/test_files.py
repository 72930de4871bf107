"""Files that are complete or absent, with the rights that the umask leaves."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsora import MedSoraPipeline
from medsora.data.phantom import write_phantom
from medsora.errors import BadInput
from medsora.project.export import export_run
from medsora.runtime.files import (
    END_MARK,
    make_folder,
    name_beside,
    remove_leftovers,
    write_between_marks,
    write_bytes,
    write_json,
    write_text,
    written_beside,
    written_folder,
)
from medsora.sampling.run import SamplingSettings, sample_videos
from medsora.training.cache.store import TensorStore
from tests.support import tiny_training as tiny
from tests.support.disk.failing_reads import ERRORS, failing_reads
from tests.support.paths import ROOT


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_helpers_write_what_they_are_given_and_make_folders(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"\0\1")
    write_text(tmp_path / "b", "π\n")
    write_json(tmp_path / "c", {"b": 1, "a": "π"}, sort_keys=True)
    assert (tmp_path / "new" / "a").read_bytes() == b"\0\1"
    assert (tmp_path / "b").read_bytes() == "π\n".encode()
    assert (tmp_path / "c").read_text() == '{\n "a": "\\u03c0",\n "b": 1\n}'


def test_what_a_kill_left_beside_is_removed_once_nobody_can_be_writing_it(tmp_path: Path) -> None:
    old, new = (name_beside(tmp_path / "video-00001.mp4") for _ in range(2))
    frames = name_beside(tmp_path / "video-00002")
    frames.mkdir()
    for path in (old, new, frames / "frame-00000.png", tmp_path / ".mine.mp4", tmp_path / "video-00001.mp4"):
        path.touch()
    for path in (old, frames, tmp_path / ".mine.mp4", tmp_path / "video-00001.mp4"):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, ".mine.mp4", "video-00001.mp4"}
    remove_leftovers(tmp_path / "not there")
    inside = name_beside(tmp_path / "step-1" / "video-00000.mp4")
    inside.parent.mkdir()
    inside.touch()
    os.utime(inside, (0, 0))
    remove_leftovers(tmp_path, below="step-*")
    assert not inside.exists()


@pytest.mark.parametrize(
    ("place", "use"),
    [
        (".", lambda folder: write_phantom(folder, 1, 1, 16, seed=0)),
        ("masks", lambda folder: write_phantom(folder, 1, 1, 16, seed=0, masks=True)),
        ("latents-44136fa355b3678a", lambda folder: TensorStore(folder, "latents", {})),
    ],
    ids=["phantom", "masks", "cache"],
)
def test_what_killed_processes_left_is_removed(place: str, use: Callable, tmp_path: Path) -> None:
    left = name_beside(tmp_path / place / "entry.png")
    left.parent.mkdir(exist_ok=True)
    for _ in range(2):  # while it is filled, and where it is complete
        left.touch()
        os.utime(left, (0, 0))
        use(tmp_path)
        assert not left.exists()


def test_what_fails_leaves_the_file_of_before_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")

    def write_half() -> None:
        with written_beside(tmp_path / "a") as beside:
            beside.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="a cannot be written: No space left on device"):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES])
def test_no_read_that_fails_once_keeps_a_folder_from_its_place(error: int, tmp_path: Path) -> None:
    def write() -> None:
        with written_folder(tmp_path / "new") as working:
            (working / "inner").mkdir()
            (working / "inner" / "a").touch(mode=0o600)
            (working / "inner" / "a").write_text("content")

    with failing_reads(tmp_path, error, 0, 0) as reads:
        write()
    for first in range(1, reads.count + 1):
        with failing_reads(tmp_path, error, first, 1):
            write()
        assert (tmp_path / "new" / "inner" / "a").read_text() == "content"
        assert rights(tmp_path / "new" / "inner" / "a") != 0o600, "its folder was left out"


@pytest.mark.parametrize("error", ERRORS)
def test_a_folder_that_is_there_may_be_denied_once(error: int, tmp_path: Path) -> None:
    make_folder(folder := tmp_path / "new" / "inner")
    with failing_reads(tmp_path, error, 1, times=1):
        make_folder(folder)
    write_text(file := tmp_path / "file", "")
    for place in (file, file / "inner"):
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            make_folder(place)


def test_no_module_makes_a_folder_by_a_call_that_takes_a_failed_read_for_a_file() -> None:
    """`os.makedirs`, which diffusers' methods call, and `Path.mkdir`, if they may find the folder there."""
    saves = r"\b(?!self|pipeline|MedSoraPipeline)\w+\.save_(?:pretrained|config)\b"
    calls = re.compile(rf"makedirs\(|mkdir\(.*exist_ok|{saves}")
    files = {path: path.read_text() for path in (ROOT / "medsora").rglob("*.py")}
    assert [path for path, text in files.items() if calls.search(text)] == []


def test_a_folder_takes_its_place_complete_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder"
    with written_folder(final) as working:
        (working / "a").write_text("first")
        assert not final.exists()
    with written_folder(final) as working:
        assert list(working.iterdir()) == []
        (working / "b").write_text("second")
    assert [path.name for path in final.iterdir()] == ["b"]

    def write_half() -> None:
        with written_folder(final) as working:
            (working / "c").touch()
            raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match=r"folder cannot be written \(No space left on device\)"):
        write_half()
    assert [path.name for path in final.parent.rglob("*")] == ["folder", "b"]


def test_safetensors_obeys_the_umask_and_a_chosen_mode_stays(umask: int, tmp_path: Path) -> None:
    with written_beside(tmp_path / "a.safetensors") as beside:
        save_file({"w": torch.zeros(1)}, beside)
    assert rights(tmp_path / "a.safetensors") == 0o666 & ~umask
    with written_beside(tmp_path / "b") as beside:
        beside.touch(mode=0o640)
    assert rights(tmp_path / "b") == 0o640 & ~umask
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_run_export_and_sampling_obey_the_umask(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clips = tiny.write_clips(tmp_path / "clips")
    options = {"cache__latents": "disk", "cache__prior": "disk", "train_dit__sample_every": 2}
    config = tiny.tiny_config(Path(), clips, **options, train_vae__max_steps=2, train_dit__max_steps=2)
    tiny.train("vae", config, pages=True)
    run = tiny.train("dit", config, pages=True)
    export_run(run, tmp_path / "model")
    MedSoraPipeline.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    for kind in ("mp4", "frames"):
        settings = {"model": str(run), "num_videos": 1, "steps": 1, "format": kind}
        sample_videos(SamplingSettings(out=tmp_path / kind, **settings))
    written = [path for path in tmp_path.rglob("*") if path != clips.with_name("tiny-base.json")]
    kinds = {path.suffix for path in written if path.is_file()}
    assert {
        ".safetensors",
        ".json",
        ".yaml",
        ".txt",
        ".jsonl",
        ".html",
        ".png",
        ".mp4",
        ".mkv",
        ".csv",
    } <= kinds
    wrong = {
        str(path.relative_to(tmp_path)): oct(rights(path))
        for path in written
        if rights(path) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert not wrong


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, rename = tmp_path / "final", Path.rename
    with written_folder(final) as folder:
        write_text(folder / "a", "before")

    def refused(path: Path, target: Path) -> Path:
        if path.name == ".writing-final":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(BadInput, match="untouched"), written_folder(final) as folder:
        write_text(folder / "a", "after")
    assert (final / "a").read_text() == "before"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_read_that_fails_once_while_a_file_is_written_is_tried_again(number: int, tmp_path: Path) -> None:
    """Its folder is looked for, its rights are read, and those of a new file if only its owner has some."""
    path = tmp_path / "folder" / "file.json"
    path.parent.mkdir()
    with failing_reads(tmp_path, errno.ESTALE, number, 1) as reads, written_beside(path) as beside:
        beside.touch(0o600)
    assert path.exists()
    assert reads.count >= number


def test_what_stands_between_marks_is_replaced_and_the_rest_of_the_page_kept(tmp_path: Path) -> None:
    page, begin = tmp_path / "page.md", "<!-- made by a command -->"
    page.write_text(f"ä\n{END_MARK}\n{begin}\nold\n{END_MARK}\nafter\n{END_MARK}\n", encoding="utf-8")
    for lines in (["new", "lines"], []):
        write_between_marks(page, begin, lines)
        expected = "\n".join(["ä", END_MARK, begin, *lines, END_MARK, "after", END_MARK, ""])
        assert page.read_text(encoding="utf-8") == expected
    for without in (f"{begin}\n", f"{END_MARK}\n"):
        page.write_text(without)
        with pytest.raises(BadInput, match="are not there; put them back"):
            write_between_marks(page, begin, ["new"])
        assert page.read_text() == without
