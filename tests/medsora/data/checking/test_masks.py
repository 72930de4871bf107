"""medsora.data.checking.masks, medsora.data.reading.find: masks are left out, by name or by content; what is
called masks and is none stays.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medsora.data.checking.check import CheckReport, check_folder
from medsora.data.checking.masks import MaskFinder
from medsora.data.checking.view import check_table
from tests.support.video_files import encode, moving_frames, write_pictures

FRAMES = 14


def check(root: Path) -> CheckReport:
    return check_folder(root, frames=5, interval=1, cache_path=root.parent / "check.json")


def masks(colours: int = 2) -> np.ndarray:
    """Return masks of moving_frames: uint8 (FRAMES, 48, 64)."""
    return (moving_frames(FRAMES)[..., 0] // 16 % colours * (255 // (colours - 1))).astype(np.uint8)


def used(report: CheckReport) -> dict[str, int]:
    return {video.source.name: video.scan.frames for video in report.usable}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "masks"),
        ("images/VID01", "masks/VID01"),
        ("seq/image", "seq/GT"),
        ("seq/raw", "seq/segmentation/instruments"),
        ("seq/left_frames", "seq/ground_truth/left_labels"),
        ("seq", "seq/annotations"),
        (".", "mask"),
        ("train/img", "train/labels"),
    ],
)
def test_folders_of_masks_beside_their_frames_are_left_out(tmp_path: Path, images: str, labels: str) -> None:
    """Whatever they hold: annotations may be drawn into copies of the frames."""
    root = tmp_path / "corpus"
    write_pictures(root / images, "{:03d}.jpg", moving_frames(FRAMES))
    write_pictures(root / labels, "{:03d}_mask.png", moving_frames(FRAMES)[:, ::-1])
    report = check(root)
    frames = "corpus" if images == "." else images
    assert used(report) == {frames: FRAMES}
    (line,) = report.complaints()
    words = f"{labels} ({FRAMES} such as 000_mask.png, of {frames})"
    assert line == f"masks are left out: {FRAMES} in 1 folder, the first: {words}"
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(check_table(report))
    assert f"left out: masks, such as 000_mask.png, of {frames}" in console.export_text()


def test_masks_between_frames_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_pictures(root / "run", "{:03d}.jpg", moving_frames(FRAMES))
    write_pictures(root / "run", "{:03d}_mask.png", masks())
    report = check(root)
    assert used(report) == {"run": FRAMES}
    (line,) = report.complaints()
    assert line == f"masks are left out: {FRAMES} in 1 folder, the first: run ({FRAMES} such as 000_mask.png)"


@pytest.mark.parametrize(
    ("name", "ending"), [("masks", "png"), ("GT", "jpg"), ("classes", "png"), ("x", "bmp")]
)
def test_pictures_of_few_colours_are_masks_whatever_they_are_called(
    tmp_path: Path, name: str, ending: str
) -> None:
    root = tmp_path / "corpus"
    write_pictures(root / "a", "{}.png", moving_frames(FRAMES))
    rows, columns = np.mgrid[:96, :128]
    discs = [(np.hypot(rows - 40, columns - 50 - k) < 25).astype(np.uint8) * 255 for k in range(FRAMES)]
    write_pictures(root / name, "other{}." + ending, np.stack(discs) if ending == "jpg" else masks(8))
    report = check(root)
    assert used(report) == {"a": FRAMES}
    (line,) = report.complaints()
    assert line.startswith(f"left out {name}: masks: its pictures ")


def test_a_label_called_mask_does_not_vanish(tmp_path: Path) -> None:
    """Videos never do; pictures that are no masks are used, and said to be."""
    root = tmp_path / "corpus"
    for label, shade in (("polyp", 1), ("mask", 2)):
        encode(root / label / "video.mkv", moving_frames(FRAMES) // shade, "ffv1", "bgr0")
        write_pictures(root / label / "run", "{:03d}.png", moving_frames(FRAMES)[:, ::-1] // shade)
    report = check(root)
    assert used(report) == dict.fromkeys(
        ("mask/run", "mask/video.mkv", "polyp/run", "polyp/video.mkv"), FRAMES
    )
    remarks = [line for line in report.complaints() if "called masks" in line]
    assert remarks == [
        "used as far as it decodes: mask/run: it is called masks, but its pictures are none: they are used"
    ]


def test_dark_frames_and_grey_ones_are_no_masks() -> None:
    dark = moving_frames(4) // 20
    grey = moving_frames(4).mean(-1).astype(np.uint8)
    for frames in (dark, grey, np.zeros_like(dark), np.full_like(grey, 200)):
        for called in (False, True):
            finder = MaskFinder(called_masks=called)
            for frame in frames:
                finder.add(frame)
            assert finder.words() is None
    finder = MaskFinder(called_masks=False)
    for level in range(0, 120, 2):  # flat pictures, each of another colour
        finder.add(np.full((9, 9, 3), level, np.uint8))
    assert finder.words() is None


def test_deep_label_images_are_masks(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_pictures(root / "ids", "{}.png", masks().astype(np.uint16) * 257)
    (line,) = check(root).complaints()
    assert line == "left out ids: masks: its pictures hold 2 colours in all"
