"""Black borders are found to the pixel and cut off, burnt-in text is warned of; plain clips have neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsora.config.load import config_from_dict
from medsora.data.checking.burnt_in import (
    EvenSamples,
    StillMarks,
    find_still_marks,
    marks_inside,
    position_words,
)
from medsora.data.checking.check import check_folder
from medsora.data.clips import ClipDataset, ClipSpec
from medsora.data.exact_flow import check_flow_files
from medsora.data.phantom import clip_seed, render_clip
from medsora.data.reading.margins import NO_MARGINS
from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from medsora.training.cache.fingerprint import clips_digest
from tests.support.video_files import BORDERS, bordered, lettered


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render_clip(3, 20, 128).video


MARGINS = tuple(border / side for border, side in zip(BORDERS, (160, 160, 256, 256), strict=True))


def test_borders_are_found_to_the_pixel(scene: np.ndarray) -> None:
    assert find_still_marks(bordered(scene)) == StillMarks(MARGINS)


def test_text_on_a_border_is_found_and_cut_off_with_it(scene: np.ndarray) -> None:
    found = find_still_marks(lettered(bordered(scene)))
    assert found.margins == MARGINS
    assert [position_words(box) for box in found.marks] == ["at the top left"]
    assert marks_inside(found.marks, found.margins) == ()
    assert marks_inside(found.marks, NO_MARGINS) == found.marks


def test_text_on_the_scene_is_found_where_it_stands(scene: np.ndarray) -> None:
    found = find_still_marks(lettered(scene, at=(60, 110)))
    assert found.margins == NO_MARGINS
    (box,) = found.marks
    top, bottom, left, right = np.array(box) * 128
    assert 108 <= top < bottom <= 126
    assert 58 <= left < right <= 128


@pytest.mark.parametrize("behind", ["box", "outline"])
def test_text_that_brings_its_own_darkness_is_found(scene: np.ndarray, behind: str) -> None:
    found = find_still_marks(lettered(scene, at=(30, 60), behind=behind))
    assert [position_words(box) for box in found.marks] == ["in the middle"]
    assert found.margins == NO_MARGINS


COLOURS = {"red": (255, 0, 0), "black": (0, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_text_of_any_colour_is_found(colour: tuple[int, int, int], scene: np.ndarray) -> None:
    found = find_still_marks(lettered(scene, at=(30, 60), fill=colour))
    assert found.margins == NO_MARGINS
    assert found.marks
    assert all(0.4 < top < bottom < 0.65 and left > 0.2 for top, bottom, left, _ in found.marks)


def test_thin_green_text_and_compressed_red_text_are_found(scene: np.ndarray, tmp_path: Path) -> None:
    assert find_still_marks(lettered(scene, at=(30, 60), fill=(0, 255, 0), height=10)).marks
    write_video(tmp_path / "red.mp4", lettered(scene, at=(10, 60), fill=(255, 0, 0), height=18), 25)
    assert find_still_marks(read_frames(tmp_path / "red.mp4")).marks


def test_red_text_on_a_border_is_cut_off_with_it(scene: np.ndarray) -> None:
    found = find_still_marks(lettered(bordered(scene), fill=(255, 0, 0)))
    assert found.margins == MARGINS
    assert [position_words(box) for box in found.marks] == ["at the top left"]


def test_plain_phantoms_have_neither() -> None:
    for seed in range(8):
        assert find_still_marks(render_clip(seed, 17, 48).video) == StillMarks()


@pytest.mark.parametrize("index", [1, 19, 61])
def test_a_resting_instrument_of_a_few_pixels_is_no_text(index: int) -> None:
    """Two of these have thin, still, evenly coloured lines; 64 pixels are too few for letters."""
    clip = render_clip(clip_seed(0, index), 18, 64, polyp=False, instrument=True)
    assert find_still_marks(clip.video).marks == ()


def test_a_round_field_is_cropped_and_its_rim_is_no_mark(scene: np.ndarray) -> None:
    rows, columns = np.mgrid[0:128, 0:128] - 63.5
    inside = (np.hypot(rows, columns) < 50)[..., None]
    rim = (np.abs(np.hypot(rows, columns) - 50) < 1.5)[..., None]
    found = find_still_marks(np.where(rim, 255, np.where(inside, scene, 0)).astype(np.uint8))
    assert found.marks == ()
    assert np.allclose(found.margins, 13 / 128, atol=3 / 128)


@pytest.mark.parametrize("side", [48, 64, 96])
def test_a_diagonal_edge_of_the_field_is_no_mark(side: int) -> None:
    """Above, bright and still, the field is cut at the corners, below the scene moves."""
    rows, columns = np.mgrid[0:side, 0:side]
    outside = rows + np.minimum(columns, side - 1 - columns) < side // 4
    video = np.full((20, side, side, 3), 200, np.uint8)
    video[:, side // 3 :] = np.random.default_rng(0).integers(20, 140, (20, side - side // 3, side, 3))
    video[:, outside] = 0
    assert find_still_marks(video).marks == ()
    assert find_still_marks(lettered(video, at=(side // 8, side // 2), height=side // 3)).marks


def test_a_still_and_a_dark_video_have_no_findings(scene: np.ndarray) -> None:
    assert find_still_marks(lettered(scene[:1]).repeat(20, 0)).marks == ()
    assert find_still_marks(np.zeros((20, 40, 60, 3), np.uint8)) == StillMarks()
    assert find_still_marks(bordered(scene[:1])).margins == MARGINS


def test_samples_stay_few_and_even() -> None:
    samples = EvenSamples()
    taken = []
    for number in range(1000):
        if samples.wants(number):
            taken.append(number)
            samples.add(np.full((4, 6, 3), number % 251, np.uint8))
    kept = np.stack(samples.kept)[:, 0, 0, 0]
    assert 24 <= len(kept) < 48
    assert len(taken) < 200
    assert list(kept) == [number % 251 for number in range(0, 1000, 32)]


@pytest.fixture(scope="module")
def folder(scene: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "bordered.mkv", bordered(scene), 25, lossless=True)
    write_video(folder / "lettered.mp4", lettered(scene), 25)
    return folder


def test_the_check_reports_it_and_the_clips_are_cropped(
    folder: Path, scene: np.ndarray, tmp_path: Path
) -> None:
    options = {"frames": 5, "interval": 1, "cache_path": tmp_path / "check.json"}
    for _ in range(2):  # decoded, then recalled
        report = check_folder(folder, crop="auto", **options)
        one, other = report.reports
        assert one.margins == MARGINS
        assert one.crop_words == "cropped by top 12, bottom 20, left 100, right 28 pixels"
        assert other.margins == NO_MARGINS
        assert other.marks_words == "at the top left"
        assert ["borders" in line or "burnt-in" in line for line in report.complaints()] == [True, True]
    spec = ClipSpec(frames=4, interval=1, size=(128, 128), images=0, flip=False)
    clips = ClipDataset(report, spec, holdout=0)
    pixels = (clips.fixed_clip(0)["video"].movedim(1, -1).numpy() + 1) * 127.5
    assert np.array_equal(pixels.round().astype(np.uint8), scene[:5])
    whole = ClipDataset(check_folder(folder, **options), spec, holdout=0)
    assert clips_digest(clips) != clips_digest(whole)
    with pytest.raises(BadInput, match=r"cropped by top 12.*data\.crop=none"):
        check_flow_files(report.usable, interval=1, size=(160, 256))


def test_parts_by_hand_cut_off_text(folder: Path, tmp_path: Path) -> None:
    report = check_folder(folder, crop=[0.3, 0, 0, 0], frames=5, interval=1, cache_path=tmp_path / "c.json")
    assert all(source.margins == (0.3, 0, 0, 0) and not source.marks for source in report.reports)


@pytest.mark.parametrize("crop", ["automatic", 0.1, [0.1, 0.1], [0.1, 0.1, 0.1, -1], [0.5, 0.5, 0, 0]])
def test_a_crop_that_is_none_is_refused(crop: object) -> None:
    with pytest.raises(BadInput, match=r"data\.crop is .* but must be auto, none, or four parts"):
        config_from_dict({"data": {"crop": crop}}, "it")


@pytest.mark.parametrize("crop", ["auto", "none", [0.1, 0, 0.25, 0]])
def test_a_good_crop_is_taken(crop: object) -> None:
    assert config_from_dict({"data": {"crop": crop}}, "it").data.crop == crop


def test_the_pillcam_logo_is_seen(endoscopy_folder: Path, tmp_path: Path) -> None:
    report = check_folder(endoscopy_folder / "capsule_pillcam", cache_path=tmp_path / "c.json", crop="auto")
    (capsule,) = report.reports
    assert len(capsule.scan.marks) == 1
    assert capsule.scan.marks[0][0] > 0.9
    assert capsule.marks == ()  # it lies on the border
