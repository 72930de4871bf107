"""medsora.data.__main__, medsora.data.checking.view: a folder with one instance of everything that is not
read as it lies there: the check has a line for each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from medsora.data import __main__ as commands
from medsora.data.phantom import render_clip
from tests.support.video_files import copy_from, encode, moving_frames, write_pictures

FRAMES = 12
INTERLACED = {"b": "6M", "flags": "+ildct+ilme", "top": "1", "g": "12"}
LATIN = os.fsdecode(b"caf\xe9")


def scene(number: int, count: int = FRAMES) -> np.ndarray:
    """Return frames that are those of no other number."""
    return np.roll(moving_frames(count), 7 * number, axis=2) // (1 + number % 3)


def numbered(pattern: str, numbers: Iterable[float]) -> list[str]:
    return [pattern.format(number) for number in numbers]


def encode_shown(path: Path, frames: np.ndarray, prepare: Callable[[av.VideoStream], None]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        prepare(stream)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def interpreted(root: Path) -> None:
    """Write files that are converted as they specify, and files that cannot be read."""
    root.mkdir()
    encode_shown(root / "turned.mp4", scene(1), lambda stream: stream.set_display_rotation(90))
    encode_shown(
        root / "pal.mp4",
        scene(2),
        lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(16, 15)),
    )
    encode(root / "interlaced.mpg", scene(3), "mpeg2video", "yuv420p", INTERLACED)
    encode(root / "hd.mp4", moving_frames(6, 720, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pictures(root / "exif", "{}.jpg", scene(4), exif=exif)
    write_pictures(root / "deep", "{}.png", scene(5)[..., 0].astype(np.uint16) * 16)
    (root / "scan.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0\0\0\0\0")
    pictures = [Image.fromarray(frame) for frame in scene(6)]
    for name in ("animated/a.webp", "pages/a.tif"):
        (root / name).parent.mkdir()
        pictures[0].save(root / name, save_all=True, append_images=pictures[1:])
    encode(root / "copy.mkv", scene(6), "ffv1", "bgr0")
    shutil.copy(root / "copy.mkv", root / "copy 2.mkv")


def parted(root: Path) -> None:
    """Write files with boundaries inside, and with uneven time stamps."""
    clips = [render_clip(seed, FRAMES, 48).video for seed in range(2)]
    encode(root / "cut.mkv", np.concatenate(clips), "ffv1", "bgr0")
    write_pictures(root / "two scenes", "{:02d}.png", np.concatenate(clips))
    times = [40 * number for number in range(FRAMES)]
    encode(root / "pause.mkv", scene(23, 2 * FRAMES), times=times + [3_600_000 + time for time in times])
    encode(
        root / "variable.mp4", scene(24), times=[80 * number + 40 * (number % 2) for number in range(FRAMES)]
    )
    one, other = (encode(root / f"{name}.ts", scene(25, 60), "mpeg2video") for name in ("one", "other"))
    (root / "joined.ts").write_bytes(one.read_bytes() + other.read_bytes())
    whole = encode(root / "whole.mp4", scene(26, 60), options={"g": "60", "bf": "2"})
    copy_from(whole, root / "edited.mp4", frames=20)
    for path in (one, other, whole):
        path.unlink()


def named(root: Path) -> None:
    """Write what names of pictures tell."""
    for number in range(2):
        write_pictures(root / "polyp", f"v{number}_{{}}.png", scene(7 + number))
    encode(root / "films" / "case1.mkv", scene(9), "ffv1", "bgr0")
    write_pictures(root / "films", ["case1.jpg"], scene(9, 1))
    write_pictures(root / "gaps", numbered("{:03d}.png", [*range(6), *range(9, 15)]), scene(10))
    write_pictures(root / "fives", numbered("{:03d}.png", range(0, 60, 5)), scene(11))
    write_pictures(root / "seconds", numbered("{}.png", [k / 25 for k in range(FRAMES)]), scene(12))
    write_pictures(root / "twice", ["1.png", "01.png", *numbered("{}.png", range(2, FRAMES))], scene(13))
    write_pictures(root / "odd", "{:02d}.png", scene(14))
    write_pictures(root / "odd", ["09.png"], moving_frames(1, 96, 96))
    write_pictures(root / "sizes", "{:02d}.png", scene(15))
    write_pictures(root / "sizes", numbered("{:02d}.png", range(FRAMES, 24)), moving_frames(12, 96, 96))
    write_pictures(root / "stray", "{:02d}.png", scene(16))
    write_pictures(root / "stray", ["screen shot.png"], scene(16, FRAMES + 1)[-1:])
    write_pictures(root / "unrelated", ["ab.png", "cd.png", "ef.png", "gh.png"], scene(17, 4))
    masks = (scene(18)[..., 0] > 100).astype(np.uint8) * 255
    write_pictures(root / "beside", "{:02d}.png", scene(18))
    write_pictures(root / "beside", "{:02d}_mask.png", masks)
    write_pictures(root / "apart" / "images", "{:02d}.jpg", scene(19))
    write_pictures(root / "apart" / "GT", "{:02d}.png", masks)
    write_pictures(root / "classes", "{:02d}.png", masks)
    encode(root / "mask" / "video.mkv", scene(20), "ffv1", "bgr0")
    write_pictures(root / "mask" / "run", "{:02d}.png", scene(21))
    encode(root / LATIN / f"{LATIN}.mkv", scene(22), "ffv1", "bgr0")


LINES = {
    "turned.mp4": "rotated 270°",
    "pal.mp4": "pixels of 16:15 made square",
    "interlaced.mpg": "deinterlaced",
    "hd.mp4": "colours read as BT.709",
    "exif": "rotated 90°",
    "deep": "values 0 to 4095 scaled to 0 to 255",
    "scan.dcm": "a DICOM file, which is not read",
    "animated": "an animation or document of 12 pictures",
    "pages": "an animation or document of 12 pictures",
    "copy.mkv": "copy of copy 2.mkv",
    "cut.mkv": "1 hard cut (at frame 12)",
    "two scenes": "1 hard cut (at frame 12)",
    "pause.mkv": "1 pause (at frame 12)",
    "variable.mp4": "variable frame rate: frames are 0.04 to 0.12 s apart",
    "joined.ts": "1 jump of the time stamps (at frame",
    "edited.mp4": "20 frames that the file hides",
    "polyp/v0_*.png": "frames png 12",
    "polyp/v1_*.png": "frames png 12",
    "films": "left out: posters or thumbnails, such as case1.jpg",
    "seconds": "frames ordered by value (0.0.png, 0.04.png, 0.08.png, ...)",
    "twice": "01.png and 1.png have the same frame number; rename or remove one of them",
    "odd": "1 picture of another size is left out: 09.png",
    "sizes": "its pictures have 2 different sizes, which change 1 times; no clip crosses a change",
    "stray": "left out: other pictures, such as screen shot.png",
    "unrelated": "4 single pictures, not the frames of one video: for joint images only",
    "beside": "left out: masks, such as 00_mask.png",
    "apart/GT": "left out: masks, such as 00.png, of apart/images",
    "classes": "masks: its pictures hold 2 colours in all",
    "mask/video.mkv": "matroska ffv1 12",
    "mask/run": "it is called masks, but its pictures are none: they are used",
    r"caf\udce9/caf\udce9.mkv": "matroska ffv1 12",
}
TOTALS = (
    "copy 2.mkv = copy.mkv",
    "Posters or thumbnails are left out: 1 in 1 folder, the first: films (1 such as case1.jpg).",
    "Masks are left out: 24 in 2 folders, the first: apart/GT (12 such as 00.png, of apart/images).",
    "Other pictures are left out: 1 in 1 folder, the first: stray (1 such as screen shot.png).",
    "4 pictures are single ones, not the frames of a video, and serve as joint images only: 1 source, the",
    "1 folder with the pictures of 2 recordings by their names: each recording is a video of its own, the",
    "No clip crosses a gap in the frames' numbers: 1 in 1 source, the first: gaps between 005.png and 009",
    "The frames' numbers rise by more than 1, which is no gap: 1 source, the first: fives by 5.",
)


def test_the_check_has_a_line_for_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "PIPED_WIDTH", 400)
    interpreted(tmp_path / "corpus")
    parted(tmp_path / "corpus")
    named(tmp_path / "corpus")
    commands.main(["check", "corpus", "--frames", "4", "--interval", "1", "--size", "32"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for name, words in LINES.items():
        shown = [line for line in lines if line.startswith(f"{name} ")]
        assert any(words in line for line in shown), (words, shown)
    text = " ".join(lines)
    assert not [words for words in TOTALS if words not in text]
