"""medsora.evaluation.conditional.classifier, medsora.evaluation.conditional.command,
medsora.evaluation.conditional.first_frame, medsora.evaluation.conditional.fresh_phantom,
medsora.evaluation.conditional.labels, medsora.evaluation.conditional.seams,
medsora.evaluation.sanity.criterion: the commands that measure conditional sampling separate right from
wrong and run end to end.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medsora.config.load import load_config
from medsora.data.phantom import render_clip
from medsora.errors import BadInput
from medsora.evaluation.conditional import first_frame, fresh_phantom, labels, phantom_model, seams
from medsora.evaluation.conditional.classifier import (
    ClipClassifier,
    FrameClassifier,
    predicted_labels,
    train_classifier,
)
from medsora.evaluation.conditional.command import conclude, trained_phantom
from medsora.evaluation.metrics.motion import DIS_NOTE, flow_magnitudes
from medsora.evaluation.sanity.criterion import Criterion
from medsora.evaluation.sanity.degrade import blurred
from medsora.runtime.digests import unsealed
from medsora.sampling.conditions import FilmPlan
from medsora.sampling.pipeline import MedSoraPipeline
from tests.support.endogen import tiny_tokenizer as tokens
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import GEOMETRY, tiny_denoiser, tiny_pipeline, tiny_vae, write_per_frame

NAMES = ["instrument", "neither", "polyp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    geometry = GEOMETRY | {"frames": 9, "size": [32, 32]}
    pipeline = MedSoraPipeline(
        tiny_denoiser(classes=3), tiny_vae(), **geometry, labels=NAMES, given_frames=[1]
    )
    pipeline.save_pretrained(folder)
    return folder


def options(model: Path, out: Path, **others) -> argparse.Namespace:
    common = {"model": str(model), "out": out, "cache": out / "cache", "sampler": "ddim", "steps": 1}
    return argparse.Namespace(**common | others)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (first_frame, "videos", "0"),
        (seams, "frames", "0"),
        (labels, "held-out-clips", "2"),
        (phantom_model, "judge-clips", "1"),
    ],
)
def test_too_few_clips_are_refused_before_anything_is_loaded(
    command: ModuleType, option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--model", "none", "--out", "out", f"--{option}", value])
    with pytest.raises(BadInput, match=f"--{option} is {value} but must be at least [13]"):
        command.main()


@pytest.mark.parametrize("of_frames", [True, False])
def test_a_classifier_learns_and_is_the_same_again(of_frames: bool) -> None:
    random = np.random.default_rng(0)
    truth = np.arange(40) % 2
    clips = random.integers(0, 90, (40, 8, 32, 32, 3), dtype=np.uint8)
    clips[truth == 1, :, 8:20, 8:20, 0] += 150
    classifier = train_classifier(clips, truth.tolist(), epochs=8, of_frames=of_frames)
    assert (predicted_labels(classifier, clips) == truth).all()
    again = train_classifier(clips, truth.tolist(), epochs=8, of_frames=of_frames)
    assert all((a == b).all() for a, b in zip(classifier.parameters(), again.parameters(), strict=True))


def test_only_a_classifier_of_frames_ignores_their_order() -> None:
    torch.manual_seed(0)
    video = torch.rand(2, 9, 3, 32, 32) * 2 - 1
    for kind, same in ((FrameClassifier, True), (ClipClassifier, False)):
        classifier = kind(3)
        assert torch.allclose(classifier(video), classifier(video.flip(1)), atol=1e-5) == same
    assert FrameClassifier(3)(video[:, :1]).shape == (2, 3)


def test_a_phantom_classifier_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh_phantom.phantom_classifier(tmp_path, 6, 8, 32, epochs=1)
    monkeypatch.setattr(fresh_phantom, "train_classifier", None)
    again = fresh_phantom.phantom_classifier(tmp_path, 6, 8, 32, epochs=1)
    assert all((a == b).all() for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not again.training
    assert again.head.out_features == len(NAMES)
    with pytest.raises(TypeError):  # another one is not there
        fresh_phantom.phantom_classifier(tmp_path, 6, 8, 32, epochs=2)


def test_the_phantom_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data: {root: null}\nphantom: {polyp_size: 1.8, look: narrow-band}\n"
    checkpoint = tmp_path / "dit-tiny" / "checkpoints" / "step-0000010"
    checkpoint.mkdir(parents=True)
    (tmp_path / "dit-tiny" / "config.yaml").write_text(text, encoding="utf-8")
    for model in (tmp_path / "dit-tiny", checkpoint):
        assert trained_phantom(str(model)) == (1.8, "narrow-band")
    assert trained_phantom(str(tmp_path)) == trained_phantom(None) == (1.0, "white-light")
    monkeypatch.chdir(tmp_path / "dit-tiny")
    for model in ("phantom", "somebody/model"):
        assert trained_phantom(model) == (1.0, "white-light"), "not that of the working folder"
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.yaml").write_text(text, encoding="utf-8")
    assert trained_phantom(str(tmp_path)) == (1.8, "narrow-band"), "--vae takes a whole run, too"


def test_agreement_separates_a_model_that_follows_labels_from_one_that_does_not() -> None:
    requested = np.arange(300) % 3
    right = labels.agreement(requested, requested, NAMES)
    assert (right["agreement"], right["of_label"]) == (1, dict.fromkeys(NAMES, 1.0))
    assert right["shuffled"] == pytest.approx(right["chance"], abs=0.01)
    assert right["chance"] == pytest.approx(1 / 3)
    always_the_same = labels.agreement(requested, np.zeros(300, int), NAMES)
    assert always_the_same["agreement"] == pytest.approx(1 / 3)
    assert always_the_same["shuffled"] == pytest.approx(1 / 3)


def test_a_phantom_model_from_end_to_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    requested = {"videos": 16, "guidance": 2.0, "seed": 0, "judge_clips": 6, "epochs": 1, "raft": None}
    requested |= {"polyp_size": 1.5}
    training = fresh_phantom.phantom_folder(tmp_path, 6, 9, 32, 5)
    status = phantom_model.measure(options(model, tmp_path / "out", training=training, **requested))
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert status == 1
    agreement = results["label agreement"]
    assert 0 <= agreement["low"] <= agreement["agreement"] <= agreement["high"] <= 1
    assert set(results["near copies"]) == {"pixels", "features"}
    assert len(results["balanced accuracy, generated against reconstructed"]) == 5
    assert "FAIL: the pyramid distance" in capsys.readouterr().out


def test_labels_from_end_to_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    classifier = {
        "training_clips": 6,
        "held_out_clips": 6,
        "epochs": 1,
        "polyp_size": None,
        "vae": None,
        "size": 32,
    }
    status = labels.measure(options(model, tmp_path, videos=3, guidance=2.0, seed=0, **classifier))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["videos"] == 3
    assert (results["model"], results["polyp_size"], results["look"]) == (str(model), 1.0, "white-light")
    assert results["classifier_recipe"] == fresh_phantom.CLASSIFIER_RECIPE
    assert all((tmp_path / f"sheet-{name}.png").is_file() for name in NAMES)
    output = capsys.readouterr().out
    assert "sampled clips show the requested label" in output
    assert status == ("FAIL: " in output)
    for vae in (str(model / "vae"), str(ROOT / "configs" / "phantom_base.json")):
        labels.measure(options("", tmp_path, **classifier | {"vae": vae}))
        kept = json.loads((tmp_path / "results.json").read_text())
        assert all(0 <= kept[f"{labels.THROUGH_VAE}, {name}"] <= 1 for name in NAMES)
        assert "polyp is kept by the VAE" in capsys.readouterr().out
    with pytest.raises(BadInput, match="leave one out"):
        labels.measure(options(model, tmp_path, videos=3, **classifier | {"vae": str(model)}))
    with pytest.raises(BadInput, match="polyp_size is 0"):
        labels.measure(options("", tmp_path, **classifier | {"vae": str(model / "vae"), "polyp_size": 0.0}))
    tiny_pipeline().save_pretrained(tmp_path / "plain")
    with pytest.raises(BadInput, match="trained without labels"):
        labels.measure(options(tmp_path / "plain", tmp_path, videos=3, **classifier))


def test_labels_of_a_model_that_writes_codes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tokens.write_run(tmp_path / "run" / "endogen-tiny", steps=(2,), labels=NAMES)
    classifier = {"training_clips": 6, "held_out_clips": 6, "epochs": 1, "polyp_size": None, "vae": None}
    labels.measure(options(run, tmp_path, videos=3, guidance=1.5, seed=0, size=None, **classifier))
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["agreement"] <= 1
    assert 0 <= results[labels.THROUGH_VAE] <= 1
    assert results["guidance"] == 1.5
    assert "steps" not in results, "of diffusion alone"
    assert "sampled clips show the requested label" in capsys.readouterr().out
    with pytest.raises(BadInput, match="is a model of EndoGenPipeline"):
        seams.measure(options(run, tmp_path, videos=1, frames=17, window=None))


def test_first_frames_from_end_to_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first_frame.measure(options(model, tmp_path, videos=2, given=1))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["psnr_of_the_vae_alone_db"] > 0
    assert (tmp_path / "sheet.png").is_file()
    output = capsys.readouterr().out
    assert "given frames lie" in output
    assert DIS_NOTE in output
    with pytest.raises(BadInput, match="trained to begin with 1 "):
        first_frame.measure(options(model, tmp_path, videos=2, given=9))


def test_coarse_flow_hardly_depends_on_how_sharp_a_clip_is() -> None:
    clips = [render_clip(seed, 9, 64).video for seed in range(2)]
    soft = [blurred(clip, 2.0) for clip in clips]
    coarse = [blurred(clip, 64 * first_frame.COARSE) for clip in clips]
    coarse_soft = [blurred(clip, 64 * first_frame.COARSE) for clip in soft]
    fine_ratio = flow_magnitudes(soft).sum() / flow_magnitudes(clips).sum()
    coarse_ratio = flow_magnitudes(coarse_soft).sum() / flow_magnitudes(coarse).sum()
    assert coarse_ratio == pytest.approx(1, abs=0.05)
    assert abs(coarse_ratio - 1) < abs(fine_ratio - 1)


@pytest.mark.parametrize(("outcomes", "status"), [((True, True), 0), ((True, False), 1)])
def test_a_claim_that_fails_is_the_exit_status(
    outcomes: tuple[bool, ...], status: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    criteria = [Criterion(f"number {k}", holds) for k, holds in enumerate(outcomes)]
    assert conclude(tmp_path, {"figure": 1.5}, criteria) == status
    assert unsealed(json.loads((tmp_path / "results.json").read_text())) == {"figure": 1.5}
    assert capsys.readouterr().out.count("FAIL: ") == status


def test_the_classifier_alone_sees_clips_as_long_as_the_model_s() -> None:
    data = load_config(ROOT / "configs" / "phantom_labels.yaml").data
    assert (data.frames, data.size) == (labels.FRAMES, labels.SIZE)


def test_psnr() -> None:
    clip = np.full((1, 1, 4, 4, 3), 100, np.uint8)
    assert first_frame.psnr(clip, clip + 5) == pytest.approx(20 * np.log10(255 / 5))


def test_where_the_joints_of_a_film_are() -> None:
    plan = FilmPlan(64, 17, 9)
    assert seams.joints_of(plan).tolist() == [16, 24, 32, 40, 48, 56]
    assert seams.pairs_like_joints(plan, 4).tolist() == [0, 4, 8, 12, 20, 28, 36, 44, 52, 60]
    assert seams.joints_of(FilmPlan(18, 17, 9)).tolist() == [16]
    assert seams.joints_of(FilmPlan(32, 16, 8)).tolist() == [15, 23]
    assert seams.pairs_like_joints(FilmPlan(32, 16, 8), 4).tolist() == [3, 7, 11, 19, 27]


def test_a_jump_is_seen_where_it_is() -> None:
    film = np.concatenate([render_clip(seed, 6, 64).video for seed in (1, 2)])
    errors = seams.warping_errors(film)
    assert errors.shape == (11,)
    assert errors.argmax() == 5


def test_seams_from_end_to_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    seams.measure(options(model, tmp_path, videos=1, frames=17, window=None))
    assert len(json.loads((tmp_path / "results.json").read_text())["per_pair"]) == 16
    output = capsys.readouterr().out
    assert "joints show" in output
    assert DIS_NOTE in output
    with pytest.raises(BadInput, match="has no joint"):
        seams.measure(options(model, tmp_path, videos=1, frames=9, window=None))


def test_films_of_a_vae_of_single_frames_have_seams_too(tmp_path: Path) -> None:
    model = write_per_frame(tmp_path / "model")
    seams.measure(options(model, tmp_path, videos=1, frames=8, window=None))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["plan"] == {"frames": 8, "window": 5, "overlap": 2}
