"""medsora.training.dino.command, medsora.training.dino.loop, medsora.training.dino.objective,
medsora.training.dino.pictures, medsora.training.dino.probe, medsora.training.dino.__main__: flow's own DINO.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medsora.errors import BadInput, Interrupted
from medsora.flow_prior import DinoEncoder
from medsora.runtime.interruption import StopRequest
from medsora.training.dino.command import main
from medsora.training.dino.loop import Recipe, StudentAndTeacher, train_dino
from medsora.training.dino.objective import (
    CENTRE_MOMENTUM,
    PROTOTYPES,
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    DinoLoss,
    random_crops,
)
from medsora.training.dino.pictures import FlowPictures, flow_pictures, motion_of
from medsora.training.dino.probe import colour_probe, scores

SMALL = Recipe(steps=4, batch=3, crop=16, small_crop=8)


@pytest.fixture(scope="module")
def encoder_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.json"
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    path.write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": settings}))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FlowPictures:
    return flow_pictures(tmp_path_factory.mktemp("pictures"), 3, 24, seed=0)


def test_the_loss_is_the_cross_entropy_of_all_pairs_of_different_crops() -> None:
    torch.manual_seed(0)
    scores_of = [torch.randn(5, PROTOTYPES, dtype=torch.float64).clamp(-1, 1) for _ in range(4)]
    teacher = [torch.randn(5, PROTOTYPES, dtype=torch.float64).clamp(-1, 1) for _ in range(2)]
    loss = DinoLoss().double()
    loss.centre.uniform_(-0.1, 0.1)
    centre, found = loss.centre.clone(), loss(scores_of, teacher)
    wanted = []
    for i, target in enumerate(teacher):
        for k, answer in enumerate(scores_of):
            if i != k:
                p = torch.exp((target - centre) / TEACHER_TEMPERATURE)
                q = torch.exp(answer / STUDENT_TEMPERATURE)
                p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
                wanted.append(-(p * q.log()).sum(-1).mean())
    torch.testing.assert_close(found, torch.stack(wanted).mean())
    mean = torch.cat(teacher).mean(0)
    torch.testing.assert_close(loss.centre, CENTRE_MOMENTUM * centre + (1 - CENTRE_MOMENTUM) * mean)


def test_gradients_reach_the_student_and_never_the_teacher(encoder_json: Path) -> None:
    both = StudentAndTeacher(str(encoder_json), SMALL)
    crops = [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)]
    both.loss_of(crops, [torch.rand(2, 3, 8, 8)]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in both.student.parameters())
    assert all(p.grad is None for p in both.teacher.parameters())
    before = [p.clone() for p in both.teacher.parameters()]
    with torch.no_grad():
        for p in both.student.parameters():
            p.add_(1)
    both.average(0.75)
    for old, new in zip(before, both.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_crops_keep_hues_and_lie_inside_the_picture() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0], picture[:, 2] = torch.linspace(0.2, 0.6, 32), torch.linspace(0.1, 0.3, 32)
    crops = torch.cat(random_crops(picture, 40, 8, (0.1, 0.5), torch.Generator().manual_seed(0)))
    assert not crops[:, 1].any()
    torch.testing.assert_close(crops[:, 0], 2 * crops[:, 2])  # the hue, whatever the brightness
    assert 0.14 < float(crops[:, 0].min()) < float(crops[:, 0].max()) < 0.79
    widths = (crops[..., -1] - crops[..., 0])[:, 0].mean(1)
    assert widths.std() > 0.02, "crops of different sizes"
    again = torch.cat(random_crops(picture, 40, 8, (0.1, 0.5), torch.Generator().manual_seed(0)))
    assert torch.equal(crops, again)


@pytest.mark.parametrize("number", range(4), ids=["right", "down", "expansion", "rotation"])
def test_motion_of_a_flow_is_its_shift_expansion_and_rotation(number: int) -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 33), np.linspace(-1, 1, 33), indexing="ij")
    one = np.ones_like(x)
    flow = 3 * np.stack([[one, 0 * one], [0 * one, one], [x, y], [-y, x]][number])[None].astype(np.float32)
    motion, moving = motion_of(flow)
    assert moving.all()
    assert motion[0, number] > 0.4
    assert np.abs(np.delete(motion[0], number)).max() < 1e-6
    assert not motion_of(0 * flow)[1].any()


def test_pictures_are_made_once_and_never_mixed(tmp_path: Path, pictures: FlowPictures) -> None:
    made = flow_pictures(tmp_path, 3, 24, seed=0)
    assert np.array_equal(made.pictures, pictures.pictures)
    stamp = (tmp_path / "pictures.npy").stat().st_mtime_ns
    flow_pictures(tmp_path, 3, 24, seed=0)
    assert (tmp_path / "pictures.npy").stat().st_mtime_ns == stamp
    with pytest.raises(BadInput, match="another recipe"):
        flow_pictures(tmp_path, 3, 24, seed=1)
    assert made.instrument.sum() == 17  # one clip in three
    with (tmp_path / "pictures.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([1 ^ made.pictures[-1, -1, -1, -1]]))
    with pytest.raises(BadInput, match="are damaged"):
        flow_pictures(tmp_path, 3, 24, seed=0)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, pictures: FlowPictures, encoder_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_dino(pictures, str(encoder_json), SMALL, tmp_path / "whole")
    answers = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "wanted", lambda self: next(answers))
        with pytest.raises(Interrupted, match="after step 2"):
            train_dino(pictures, str(encoder_json), SMALL, tmp_path / "cut")
    resumed = train_dino(pictures, str(encoder_json), SMALL, tmp_path / "cut")
    start = StudentAndTeacher(str(encoder_json), SMALL).teacher["encoder"].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], start[name]) for name in whole), "it learned something"
    with pytest.raises(BadInput, match="lr"):
        train_dino(pictures, str(encoder_json), Recipe(**{**vars(SMALL), "lr": 1.0}), tmp_path / "cut")


def test_probes_find_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    clip = np.repeat(np.arange(24), 17)
    motion = (random.normal(size=(24, 4)).repeat(17, 0) + 0.1 * random.normal(size=(24 * 17, 4))).astype("f")
    instrument = clip % 3 == 1
    blank = np.zeros((len(clip), 3, 8, 8), np.uint8)
    known = FlowPictures(blank, clip, instrument, motion, np.ones(len(clip), bool))
    noise = torch.from_numpy(random.normal(size=(len(clip), 8)))
    telling = torch.cat([torch.from_numpy(motion), torch.from_numpy(instrument)[:, None].float()], dim=1)
    good, bad = scores(telling, known), scores(noise, known)
    assert good["motion (R²)"] > 0.98 > 0.2 > bad["motion (R²)"]
    assert good["instrument (balanced accuracy)"] == 1
    assert abs(bad["instrument (balanced accuracy)"] - 0.5) < 0.1
    assert good["clip (nearest neighbour)"] > 0.9 > 0.2 > bad["clip (nearest neighbour)"]
    assert colour_probe(known)["motion (R²)"] < 0.1, "black pictures say nothing"


def test_the_command_writes_weights_that_the_flow_prior_loads(
    tmp_path: Path, encoder_json: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder"
    out.with_suffix(".json").write_text(encoder_json.read_text())
    numbers = ["--clips", "3", "--unseen", "12", "--size", "16", "--steps", "2", "--batch", "2"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dino", str(tmp_path / "run"), str(out), *numbers])
    main()
    assert "this encoder" in capsys.readouterr().out
    encoder = DinoEncoder(str(out.with_suffix(".json")), out.with_suffix(".safetensors"))
    assert not encoder.untrained
    assert encoder(torch.rand(2, 3, 16, 24), [1])[0].shape == (2, 24, 2, 3)
    note = out.with_suffix(".md").read_text()
    assert "untrained" in note
    assert f"python -m medsora.training.dino run encoder {' '.join(numbers)}\n" in note
    monkeypatch.setattr(sys, "argv", ["dino", str(tmp_path / "run"), str(out), "--unseen", "3"])
    with pytest.raises(BadInput, match="--unseen is 3 but must be at least 12"):
        main()


@pytest.mark.parametrize("words", [("--time-limit", "nan"), ("--time-limit", "-1"), ("--lr", "0")])
def test_numbers_without_a_meaning_are_refused(
    words: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dino", "run", "encoder", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"argument {words[0]}: must be a number" in capsys.readouterr().err
