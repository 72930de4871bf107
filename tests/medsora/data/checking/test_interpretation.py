"""medsora.data.checking.scan, medsora.data.checking.check: what is done to files that are not read as
they are stored, and which are refused and why.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medsora.data.checking.check import CheckReport, check_folder
from medsora.data.checking.view import check_table
from medsora.data.clips import ClipDataset, ClipSpec
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames, read_last_frames
from medsora.runtime.digests import sealed, unsealed
from medsora.training.cache.fingerprint import clips_digest
from tests.support.video_files import encode, moving_frames, write_pictures

FLAGGED = {"b": "6M", "flags": "+ildct+ilme", "top": "1", "g": "12"}
DICOM_HEAD = bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0\0\0\0\0"


def check(folder: Path, tmp_path: Path) -> CheckReport:
    return check_folder(folder, frames=5, interval=1, cache_path=tmp_path / "check.json")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with one source of each kind that is not read as it is stored, and an ordinary one."""
    root, frames = tmp_path / "corpus", moving_frames(12)
    encode(root / "interlaced.mpg", frames, "mpeg2video", "yuv420p", FLAGGED)
    encode(root / "plain.mkv", frames, "ffv1", "bgr0")
    encode(root / "hd.mp4", moving_frames(6, 720, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pictures(root / "turned", "{}.png", frames, exif=exif)
    write_pictures(root / "deep", "{}.png", frames[..., 0].astype(np.uint16) * 16)
    return root


def test_the_table_shows_what_is_applied(corpus: Path, tmp_path: Path) -> None:
    expected = {
        "deep": "values 0 to 4095 scaled to 0 to 255",
        "hd.mp4": "colours read as BT.709",
        "interlaced.mpg": "deinterlaced",
        "plain.mkv": "",
        "turned": "rotated 90°",
    }
    for _ in range(2):  # decoded, then recalled
        report = check(corpus, tmp_path)
        assert {r.source.name: "; ".join(r.scan.applied) for r in report.usable} == expected
        complaints = [line.split(":")[0] for line in report.complaints() if "copy" not in line]
        note = "converted as the files specify, or as players show them, in 4 sources, the first"
        assert complaints == [note]
        console = Console(width=220, record=True, file=io.StringIO())
        console.print(check_table(report))
        text = console.export_text()
        assert "applied" in text
        assert all(words in text for words in expected.values())


def test_clips_are_read_as_the_check_reports(corpus: Path, tmp_path: Path) -> None:
    report = check(corpus, tmp_path)
    clips = ClipDataset(
        report, ClipSpec(frames=4, interval=1, size=(64, 48), images=0, flip=False), holdout=0
    )
    names = [video.source.name for video in clips.videos]
    by_name = {names[video]: clips.fixed_clip(k)["video"] for k, (video, _) in enumerate(clips.windows)}
    brightness = {name: float(video.mean()) for name, video in by_name.items()}
    assert abs(brightness["deep"]) < 0.2  # not nearly black
    turned = ((by_name["turned"].movedim(1, -1).numpy() + 1) * 127.5).round().astype(np.uint8)
    assert any(np.array_equal(turned[0], np.rot90(frame, -1)) for frame in moving_frames(12))


def test_the_digest_of_clips_depends_on_how_they_are_read(tmp_path: Path) -> None:
    encode(tmp_path / "corpus" / "a.mkv", moving_frames(12), "ffv1", "bgr0")
    report = check(tmp_path / "corpus", tmp_path)
    clips = ClipDataset(report, ClipSpec(frames=4, interval=1, size=48, images=0), holdout=0)
    before = clips_digest(clips)
    object.__setattr__(clips.videos[0].scan, "applied", ("rotated 180°",))
    assert clips_digest(clips) != before


def test_scans_of_an_older_check_are_made_again(corpus: Path, tmp_path: Path) -> None:
    check(corpus, tmp_path)
    cache = tmp_path / "check.json"
    content = unsealed(json.loads(cache.read_text()))
    content["version"]["format"] = 5
    for entry in content["scans"].values():
        del entry["scan"]["interpretation"], entry["scan"]["applied"]
    cache.write_text(json.dumps(sealed(content)))
    assert {r.source.name for r in check(corpus, tmp_path).usable if not r.scan.applied} == {"plain.mkv"}


def test_scans_are_kept_whose_version_stands_under_its_former_name(corpus: Path, tmp_path: Path) -> None:
    check(corpus, tmp_path)
    cache = tmp_path / "check.json"
    content = unsealed(json.loads(cache.read_text()))
    content["made_by"] = content.pop("version")
    for entry in content["scans"].values():
        entry["scan"]["applied"] = ["kept"]
    cache.write_text(json.dumps(sealed(content)))
    assert {report.scan.applied for report in check(corpus, tmp_path).usable} == {("kept",)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_ignored_and_named(tmp_path: Path, mode: str) -> None:
    root, kept = tmp_path / "corpus" / "run", []
    root.mkdir(parents=True)
    for number, frame in enumerate(moving_frames(6)):
        picture = Image.fromarray(frame)
        picture = {"RGBA": picture, "LA": picture.convert("L"), "P": picture.quantize(200)}[mode]
        options = {"transparency": picture.getpixel((20, 20))} if mode == "P" and number < 4 else {}
        kept.append(np.asarray(picture.convert("RGB")))
        if mode != "P":
            picture.putalpha(Image.new("L", picture.size, 0 if number < 4 else 255))
        picture.save(root / f"{number}.png", **options)
    (video,) = check(root.parent, tmp_path).usable
    assert video.scan.applied == ("transparency ignored (4 of 6)",)
    assert np.array_equal(read_frames(root), np.stack(kept))


@pytest.mark.parametrize("name", ["a.dcm", "A.DICOM", "IM0001", "1.2.840.113", "lies.mp4"])
def test_dicom_is_refused_with_a_conversion(tmp_path: Path, name: str) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    (root / name).write_bytes(DICOM_HEAD + moving_frames(1).tobytes())
    (root / "README").write_text("no DICOM")
    report = check(root, tmp_path)
    assert len(report.other_files) == 1
    (line,) = report.complaints()
    assert line.startswith(f"left out {name}: a DICOM file, which is not read; convert it")
    assert "dcm2pnm" in line
    with pytest.raises(ValueError, match="DICOM"):
        read_last_frames(root / name, 1)


@pytest.mark.parametrize("ending", ["webp", "png", "tif"])
def test_animations_and_documents_are_refused(tmp_path: Path, ending: str) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    pictures = [Image.fromarray(frame) for frame in moving_frames(4)]
    pictures[0].save(root / f"a.{ending}", save_all=True, append_images=pictures[1:])
    (line,) = check(root, tmp_path).complaints()
    assert f"a.{ending} an animation or document of 4 pictures" in line
    assert f"magick a.{ending} a-%04d.png" in line


@pytest.mark.parametrize("ending", ["gif", "apng"])
def test_animations_that_are_videos_are_read_whole(tmp_path: Path, ending: str) -> None:
    pictures = [Image.fromarray(frame) for frame in moving_frames(9)]
    kind = "PNG" if ending == "apng" else "GIF"
    (tmp_path / "corpus").mkdir()
    path = tmp_path / "corpus" / f"a.{ending}"
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:])
    (video,) = check(tmp_path / "corpus", tmp_path).usable
    assert video.scan.frames == len(read_frames(path)) == 9


def test_a_tiff_with_a_thumbnail_is_one_picture(tmp_path: Path) -> None:
    full, small = (Image.fromarray(moving_frames(1, *size)[0]) for size in ((48, 64), (12, 16)))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    full.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert np.array_equal(read_image(tmp_path / "a.tif"), moving_frames(1)[0])


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_pictures_of_one_channel_have_three(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(moving_frames(1)[0]).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))
