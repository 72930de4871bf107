"""Exact flow beside a video: read where a clip lies; what is missing, cut or of another size is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsora.data.checking.check import check_folder
from medsora.data.exact_flow import check_flow_files, flow_path, read_flow, write_flow
from medsora.data.phantom import write_phantom
from medsora.data.reading.decoding import UnreadableVideo
from medsora.errors import BadInput

FRAMES, SIZE = 5, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_phantom(tmp_path / "clips", 2, FRAMES, SIZE, seed=0)
    return tmp_path / "clips"


def check(folder: Path, interval: int = 1, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    report = check_folder(folder, frames=FRAMES, interval=1, cache_path=folder.parent / "check.json")
    assert len(report.usable) == 2
    check_flow_files(report.usable, interval=interval, size=size)


def test_a_clips_flow_is_its_part_of_the_file(folder: Path) -> None:
    video = sorted(folder.glob("*.mkv"))[0]
    flow = load_file(flow_path(video))["flow"]
    assert flow.shape == (FRAMES - 1, 2, SIZE, SIZE)
    found = read_flow(video, 1, 2)
    assert found.dtype == torch.float32
    assert torch.equal(found, flow[1:3].float())
    assert np.isfinite(found).all()


def test_flow_that_fits_is_accepted_and_misfits_are_named(folder: Path) -> None:
    check(folder)
    with pytest.raises(BadInput, match=r"not over 2 frames; set data\.interval=1"):
        check(folder, interval=2)
    with pytest.raises(BadInput, match=r"cannot be resized: .* has 16x16 pixels .* the clips 32x32"):
        check(folder, size=(32, 32))
    path = flow_path(sorted(folder.glob("*.mkv"))[1])
    save_file({"flow": torch.zeros(FRAMES, 2, SIZE, SIZE)}, path)
    with pytest.raises(BadInput, match=r"holds flow of shape \[5, 2, 16, 16\] where its video needs \[4, 2"):
        check(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot be read as exact flow"):
        check(folder)
    path.unlink()
    with pytest.raises(BadInput, match=f"has no exact flow {path.name} beside it"):
        check(folder)


def test_flow_that_is_damaged_later_is_an_unreadable_video(folder: Path) -> None:
    video = sorted(folder.glob("*.mkv"))[0]
    flow_path(video).write_bytes(b"cut")
    with pytest.raises(UnreadableVideo, match="does not read as exact flow"):
        read_flow(video, 0, 1)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    video, flow = tmp_path / "a.mkv", np.random.default_rng(0).normal(size=(3, 2, 24, 24)).astype(np.float16)
    write_flow(video, flow, flow[:, 0] > 0)
    whole, refused = flow_path(video).read_bytes(), []
    for place in range(0, len(whole), 11):
        flow_path(video).write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        os.utime(flow_path(video), ns=(0, place))  # a clock may be coarse
        try:
            assert torch.equal(read_flow(video, 0, 3), torch.from_numpy(flow).float()), "used silently"
        except UnreadableVideo as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 11 - 30, "nearly all of it are values"
    assert all("a.flow.safetensors: does not read as exact flow (" in sentence for sentence in refused)


def test_flow_of_an_earlier_version_without_a_digest_is_read(tmp_path: Path) -> None:
    video, flow = tmp_path / "a.mkv", torch.randn(3, 2, 8, 8).half()
    save_file({"flow": flow, "valid": flow[:, 0] > 0}, flow_path(video))
    assert torch.equal(read_flow(video, 0, 3), flow.float())


def test_damaged_flow_is_rendered_again_as_its_message_says(folder: Path) -> None:
    path = flow_path(sorted(folder.glob("*.mkv"))[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UnreadableVideo, match=r"not match its checksum\); .* delete it and phantom\.json"):
        read_flow(path.with_name("phantom-00001.mkv"), 0, 1)
    path.unlink()
    (folder / "phantom.json").unlink()
    write_phantom(folder, 2, FRAMES, SIZE, seed=0)
    assert path.read_bytes() == whole
