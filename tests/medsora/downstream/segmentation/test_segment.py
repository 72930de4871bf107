"""medsora.downstream.segmentation.segment, medsora.downstream.segmentation.masks,
medsora.downstream.segmentation.pixel_fixmatch, medsora.downstream.segmentation.unet: what unlabelled frames
do for segmentation, from end to end and part by part.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsora.data.phantom import write_phantom
from medsora.data.reading.video_io import write_video
from medsora.downstream.command import main
from medsora.downstream.scores import DICE, IOU, mask_scores, trivial_masks
from medsora.downstream.segmentation.masks import find_pairs, read_mask, read_pairs
from medsora.downstream.segmentation.pixel_fixmatch import (
    cutmix_boxes,
    segmentation_losses,
    strong_view,
    weak_view,
)
from medsora.downstream.segmentation.unet import UNet
from medsora.downstream.training import Recipe, predict, train
from medsora.errors import BadInput

SIZE = 32


def disc(seed: int, side: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy picture (side, side, 3) with a red disc, and the disc, bool."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, radius = random.uniform(0.3 * side, 0.7 * side, 2), random.uniform(0.15, 0.25) * side
    inside = np.hypot(y - centre[0], x - centre[1]) < radius
    blocks = random.integers(0, 80, (4, 4, 3), dtype=np.uint8).repeat(side // 4, 0).repeat(side // 4, 1)
    picture = blocks + random.integers(0, 20, (side, side, 3), dtype=np.uint8)
    picture[inside] += np.array([140, 30, 30], np.uint8)
    return picture, inside


def save_pairs(folder: Path, count: int, first: int, layout: tuple[str, str] = ("images", "masks")) -> None:
    for k in range(count):
        picture, inside = disc(first + k)
        for part, values in zip(layout, (picture, inside * np.uint8(255)), strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / part / f"{k}.png")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labelled and test pictures with masks, clips and single frames without."""
    monkeypatch.chdir(tmp_path)
    save_pairs(tmp_path / "train", 4, 0)
    save_pairs(tmp_path / "test", 3, 100, ("Original", "Ground Truth"))
    for k in range(2):
        clip = np.stack([disc(200 + 10 * k + f)[0] for f in range(3)])
        write_video(tmp_path / "clips" / f"v{k}.mkv", clip, 10, lossless=True)
    (tmp_path / "frames").mkdir()
    for k, name in enumerate("wqzkxp"):
        Image.fromarray(disc(300 + k)[0]).save(tmp_path / "frames" / f"{name}.png")
    return tmp_path


WORDS = ["segment", "--labelled", "train", "--test", "test", "--unlabelled", "clips=clips", "stills=frames"]
WORDS += ["--masks", "2", "--size", "32", "--seeds", "2", "--steps", "2", "--batch", "2", "--ratio", "1"]
WORDS += ["--out", "out"]


def test_from_end_to_end_and_resumed(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORDS, "--dry-run"])
    assert "6 runs to train" in capsys.readouterr().out
    assert not (folders / "out").exists()
    main(WORDS)
    page = (folders / "out" / "results.md").read_text()
    assert "| supervised only | 0 | 2 of 2 |" in page
    assert "| clips | 6 | 2 of 2 |" in page
    assert "| stills | 6 | 2 of 2 |" in page
    assert "| empty mask | – | – | 0.0 |" in page
    results = json.loads((folders / "out" / "results.json").read_text())
    assert {"clips: Dice", "clips: IoU", "stills: Dice", "stills: IoU"} == results["differences"].keys()
    for runs in zip(*(results["runs"][k::3] for k in range(3)), strict=True):
        assert runs[0]["labelled"] == runs[1]["labelled"] == runs[2]["labelled"]
    (folders / "out" / "runs" / "1-clips-seed-1.json").unlink()
    capsys.readouterr()
    main(WORDS)
    assert "clips, seed 1: Dice" in capsys.readouterr().out
    again = json.loads((folders / "out" / "results.json").read_text())
    assert sorted(map(str, again["runs"])) == sorted(map(str, results["runs"]))  # same seed, same run
    with pytest.raises(BadInput, match="other data or options"):
        main([*WORDS, "--masks", "3"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--masks", "9"], "holds 4 masks; lower --masks 9"),
        (["--size", "36"], "multiple of 8"),
        (["--labelled", "nowhere"], "there is no folder nowhere"),
        (["--labelled", "clips"], "has no folder images/"),
        (["--threshold", "2"], "at most 1"),
        (["--unlabelled", "a=test"], "among a"),
    ],
)
def test_bad_input_is_one_sentence(folders: Path, change: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as error:
        main([*WORDS, *change])
    assert "\n" not in str(error.value)


def test_a_reencoded_test_picture_is_refused(folders: Path) -> None:
    (folders / "frames" / "w.png").unlink()
    Image.fromarray(disc(101)[0]).save(folders / "frames" / "w.jpg", quality=98, subsampling=0)
    with pytest.raises(BadInput, match=r"'1' is also among stills"):
        main([*WORDS, "--dry-run"])


def test_a_test_picture_with_borders_is_refused_among_unlabelled_frames(folders: Path) -> None:
    (folders / "leak").mkdir()
    for path in sorted((folders / "test").rglob("*.png")):
        picture = np.asarray(Image.open(path))
        border = [(16, 16), (16, 16), (0, 0)][: picture.ndim]
        Image.fromarray(np.pad(picture, border)).save(path)
        if path.parent.name == "Original":
            shutil.copy(path, folders / "leak")
    words = [word for word in WORDS if "=" not in word]
    words.insert(words.index("--unlabelled") + 1, "leak=leak")
    with pytest.raises(BadInput, match="is also among leak"):
        main([*words, "--dry-run"])


def test_pairs_are_found_by_name_whatever_the_ending(tmp_path: Path) -> None:
    save_pairs(tmp_path, 3, 0, ("Original", "Ground Truth"))
    (tmp_path / "Ground Truth" / "2.png").rename(tmp_path / "Ground Truth" / "2.tif")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["0", "1", "2"]
    (tmp_path / "Original" / "1.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match="names must differ"):
        find_pairs(tmp_path)
    (tmp_path / "Original" / "1.jpg").rename(tmp_path / "Original" / "7.jpg")
    with pytest.raises(BadInput, match=r"7\.jpg has no mask"):
        find_pairs(tmp_path)
    (tmp_path / "Original" / "7.jpg").unlink()
    (tmp_path / "Original" / "0.png").unlink()
    with pytest.raises(BadInput, match=r"0\.png has no picture"):
        find_pairs(tmp_path)


def test_masks_survive_jpeg_and_are_turned_upright(tmp_path: Path) -> None:
    """As Kvasir-SEG stores them; one EXIF tag turns the picture, its mask is upright already."""
    picture, inside = disc(0, 64)
    inside[:, 40:] = False
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it
    turned = np.rot90(picture[:, :48])
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "images" / "a.png", exif=exif)
    Image.fromarray(inside[:, :48] * np.uint8(255)).save(tmp_path / "masks" / "a.jpg", quality=75)
    (samples, masks) = read_pairs(tmp_path, find_pairs(tmp_path), 48)
    np.testing.assert_array_equal(samples.values[0][0], picture[8:56, :48])
    assert (masks[0] != inside[8:56, :48]).mean() < 0.01
    Image.fromarray(inside * np.uint8(255)).save(tmp_path / "masks" / "a.jpg")
    with pytest.raises(BadInput, match="48x64 pixels and its mask 64x64"):
        read_pairs(tmp_path, find_pairs(tmp_path), 48)
    Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png"), inside)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (disc(0, 64)[0], "has colours"),
        (disc(0, 64)[0][..., 0], "is no mask"),
        (np.kron([[0, 128], [255, 0]], np.ones((32, 32))).astype(np.uint8), "is no mask"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, values: np.ndarray, sentence: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.png")
    with pytest.raises(BadInput, match=sentence):
        read_mask(tmp_path / "x.png")


def test_dice_and_iou_of_known_masks() -> None:
    truth, answers = np.zeros((4, 2, 2), bool), np.zeros((4, 2, 2), bool)
    truth[0], answers[0, 0] = True, True  # half of it
    truth[1], answers[2] = True, True  # missed; invented
    scores = mask_scores(truth, answers)
    np.testing.assert_allclose(scores[DICE], [2 / 3, 0, 0, 1])
    np.testing.assert_allclose(scores[IOU], [1 / 2, 0, 0, 1])
    labelled = np.zeros((3, 2, 2), bool)
    labelled[:, 0, 0] = labelled[0, 1] = True
    trivial = trivial_masks(truth[:2], [labelled])
    assert trivial["empty mask"] == {DICE: 0, IOU: 0}
    assert trivial["all-polyp mask"] == {DICE: 1, IOU: 1}
    assert trivial["mean mask"] == {DICE: pytest.approx(0.4), IOU: pytest.approx(0.25)}


def test_views_move_picture_and_mask_alike() -> None:
    picture, inside = disc(4)
    marked = np.where(inside[..., None], np.uint8(255), np.uint8(0)).repeat(3, -1)
    for seed in range(10):
        random = np.random.default_rng(seed)
        view, mask = weak_view(marked, inside, random)
        assert ((view[..., 0] > 127) == mask).all()
        assert strong_view(picture, random).shape == picture.shape
    boxes = cutmix_boxes(200, SIZE, SIZE, np.random.default_rng(0))
    shares = boxes.mean((1, 2))
    assert 70 < (shares > 0).sum() < 130
    assert shares[shares > 0].min() > 0.01
    assert shares.max() < 0.45


def test_only_sure_pixels_of_unlabelled_pictures_count() -> None:
    """Where no pixel is sure, training is what it is without unlabelled pictures."""
    pictures, masks = zip(*(disc(k) for k in range(4)), strict=True)

    def weights(others: list[np.ndarray], threshold: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = UNet()
        recipe = Recipe(steps=2, batch=2, ratio=1, threshold=threshold)
        losses = segmentation_losses(model, pictures, np.stack(masks), others, recipe, kept := [])
        train(model, recipe, 0, losses, lambda *_: None)
        assert kept == ([] if not others else [threshold == 0.5] * 2)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    others = [disc(50 + k)[0] for k in range(3)]
    supervised = weights([], 0.95)
    assert torch.equal(weights(others, 1.0), supervised)
    assert not torch.equal(weights(others, 0.5), supervised)


def test_it_learns_to_find_discs() -> None:
    pictures, masks = zip(*(disc(k) for k in range(12)), strict=True)
    torch.manual_seed(0)
    model, recipe, answers = UNet(), Recipe(steps=60, batch=4), []
    losses = segmentation_losses(model, pictures[:8], np.stack(masks[:8]), [], recipe, [])
    train(model, recipe, 0, losses, lambda _, m: answers.append(predict(m, pictures[8:]) > 0))
    assert mask_scores(np.stack(masks[8:]), answers[0])[DICE].mean() > 0.6


def test_the_phantom_writes_what_is_read(tmp_path: Path) -> None:
    write_phantom(tmp_path, 2, 1, 32, seed=3, masks=True)
    samples, masks = read_pairs(tmp_path, find_pairs(tmp_path), 32)
    assert len(samples) == 2
    assert 0 < masks.mean() < 0.5
