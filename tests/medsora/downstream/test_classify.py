"""medsora.downstream.classify, medsora.downstream.command, medsora.downstream.clips,
medsora.downstream.study, medsora.downstream.fixmatch, medsora.downstream.training,
medsora.downstream.scores, medsora.downstream.backbones: what unlabelled clips do for a classifier, from end
to end and part by part.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TimesformerConfig, TimesformerModel

from medsora.data.reading.video_io import write_video
from medsora.downstream import fixmatch
from medsora.downstream.backbones import PUBLISHED_NAMES, TimeSformer, build_backbone
from medsora.downstream.classify import choose_recipe, weights_facts
from medsora.downstream.clips import Reading, find_videos, published_frames, read_clips, read_unlabelled
from medsora.downstream.command import main
from medsora.downstream.fixmatch import classify, fixmatch_losses, strong_view, weak_view
from medsora.downstream.scores import F1, classification_scores, trivial_classifications
from medsora.downstream.training import PUBLISHED, Recipe, endless, train
from medsora.errors import BadInput, NonFiniteLoss

SIZE = 32


def coloured(label: int, seed: int, frames: int = 10) -> np.ndarray:
    """A clip of blocks and noise whose middle is red for the label 1, else blue."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 80, (1, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    clip = blocks + random.integers(0, 20, (frames, SIZE, SIZE, 3), dtype=np.uint8)
    clip[:, 8:24, 8:24, 0 if label else 2] += 150
    return clip


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PolypDiag in small: a labelled and a test folder with lists, and a folder without labels."""
    monkeypatch.chdir(tmp_path)
    for folder, count, first in (("train", 6, 0), ("test", 4, 100), ("generated", 5, 200)):
        lines = []
        for k in range(count):
            write_video(tmp_path / folder / f"v{k}.mkv", coloured(k % 2, first + k), 10, lossless=True)
            lines.append(f"v{k}.mkv,{k % 2}\n")
        (tmp_path / f"{folder}.txt").write_text("".join(lines))
    return tmp_path


WORDS = ["classify", "--labelled", "train", "--labelled-list", "train.txt", "--test", "test"]
WORDS += ["--test-list", "test.txt", "--unlabelled", "ours=generated", "--per-class", "2", "--size", "32"]
WORDS += ["--seeds", "2", "--steps", "3", "--batch", "2", "--ratio", "1", "--out", "out"]


def test_from_end_to_end_and_resumed(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*WORDS, "--dry-run"])
    assert "4 runs to train" in capsys.readouterr().out
    assert not (folders / "out").exists()
    main(WORDS)
    progress = capsys.readouterr().err
    assert all(f"{variant}, seed 1: 100%" in progress for variant in ("supervised only", "ours"))
    page = (folders / "out" / "results.md").read_text()
    assert "| supervised only | 0 | 2 of 2 |" in page
    assert "| ours | 5 | 2 of 2 |" in page
    assert "| always 1 | – | – | 66.7 |" in page
    results = json.loads((folders / "out" / "results.json").read_text())
    assert {"ours: F1", "ours: balanced accuracy"} == results["differences"].keys()
    assert [run["seed"] for run in results["runs"]] == [0, 0, 1, 1]
    for runs in zip(results["runs"][::2], results["runs"][1::2], strict=True):
        assert runs[0]["labelled"] == runs[1]["labelled"]
    (folders / "out" / "runs" / "1-ours-seed-1.json").unlink()
    trained = []
    monkeypatch.setattr("medsora.downstream.classify.train", lambda *a: (trained.append(a[2]), train(*a)))
    main(WORDS)
    assert trained == [1]
    again = json.loads((folders / "out" / "results.json").read_text())
    assert again["runs"][-1] == results["runs"][-1]  # same seed, same run
    with pytest.raises(BadInput, match="other data or options"):
        main([*WORDS, "--threshold", "0.5"])


@pytest.mark.parametrize(
    ("backbone", "given", "rate"), [("small", None, 0.01), ("timesformer", None, 0.03), ("small", 0.02, 0.02)]
)
def test_learning_rate_depends_on_the_backbone(backbone: str, given: float | None, rate: float) -> None:
    options = argparse.Namespace(backbone=backbone, learning_rate=given)
    assert choose_recipe(options, published=False).learning_rate == rate


def test_published_protocol_fixes_its_numbers(folders: Path) -> None:
    with pytest.raises(BadInput, match="fixes --steps, --batch, --ratio"):
        main([*WORDS, "--protocol", "published"])
    words = ["classify", "--labelled", "train", "--test", "test", "--out", "out", "--protocol", "published"]
    with pytest.raises(BadInput, match="at most 256 pixels; lower --size 300"):
        main([*words, "--size", "300"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--per-class", "9"], "only 3 labelled videos show 0"),
        (["--positive", "polyp"], "the labels are 0, 1"),
        (["--unlabelled", "a=generated", "a=train"], "a name of its own"),
        (["--unlabelled", "a=nowhere"], "there is no folder nowhere"),
        (["--threshold", "0"], "above 0"),
        (["--seeds", "99"], "must be 1 to 20"),
        (["--backbone", "timesformer"], "needs --weights"),
        (["--frames", "4"], "at least 8 frames"),
        (["--labelled-list", "gone.txt"], "no label file gone.txt"),
        (["--learning-rate", "-1"], "above 0"),
    ],
)
def test_bad_input_is_one_sentence(folders: Path, change: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as error:
        main([*WORDS, *change])
    assert "\n" not in str(error.value)


def test_a_test_clip_among_the_others_is_refused(folders: Path) -> None:
    (folders / "generated" / "v4.mkv").write_bytes((folders / "test" / "v2.mkv").read_bytes())
    with pytest.raises(BadInput, match=r"'v2.mkv' is also among ours \('v4.mkv' of generated\)"):
        main([*WORDS, "--dry-run"])
    reencoded = np.clip(coloured(0, 102).astype(int) + 1, 0, 255).astype(np.uint8)
    write_video(folders / "generated" / "v4.mkv", reencoded, 10, lossless=True)
    with pytest.raises(BadInput, match="is also among ours"):
        main([*WORDS, "--dry-run"])


def test_unlabelled_clips_are_spread_over_sub_folders(tmp_path: Path) -> None:
    """Sorted by name, the first ones of generated clips would all show the first label."""
    for k, label in enumerate(("instrument", "neither", "polyp")):
        for number in range(4):
            path = tmp_path / "many" / label / f"video-{number}.mkv"
            write_video(path, coloured(0, 10 * k + number), 10, lossless=True)
    for number in range(3):
        write_video(tmp_path / "few" / f"{number}.mkv", coloured(1, 90 + number), 10, lossless=True)
    folders = {name: tmp_path / name for name in ("many", "few")}
    found = read_unlabelled(folders, 200, Reading(8, SIZE))
    assert [name.partition("/")[0] for name in found["many"].names] == ["instrument", "neither", "polyp"]
    assert found["few"].names == ("0.mkv", "1.mkv", "2.mkv")
    assert len(read_unlabelled(folders, 2, Reading(8, SIZE))["many"]) == 2


def test_labels_keep_the_order_of_their_list(folders: Path) -> None:
    (folders / "list.txt").write_text("v5.mkv,1\nv0.mkv,0\nv3.mkv,1\n")
    videos = find_videos("train")
    assert list(videos.labels("list.txt").items()) == [("v5.mkv", "1"), ("v0.mkv", "0"), ("v3.mkv", "1")]
    (folders / "list.txt").rename(folders / "train" / "inside.txt")
    assert list(videos.labels("inside.txt")) == ["v5.mkv", "v0.mkv", "v3.mkv"]
    clips = read_clips(videos, ["v5.mkv"], Reading(4, SIZE))
    assert (clips.values[0] == coloured(1, 5)[[0, 3, 6, 9]]).all()


def test_published_frames_are_clamped_at_the_end() -> None:
    """A clip of 16 frames at 8 per second, as Endora's are."""
    assert published_frames(16, 8.0).tolist() == [0, 9, 15, 15, 15, 15, 15, 15]


def test_scores_are_those_of_sklearn_and_of_the_publication() -> None:
    polypdiag = np.array([1] * 60 + [0] * 20)
    trivial = trivial_classifications(polypdiag, ["0", "1"], 1)
    assert round(100 * trivial["always 1"][F1], 1) == 85.7
    assert trivial["always 1"]["balanced accuracy"] == 0.5
    assert round(100 * trivial["random labels"][F1], 0) == 60
    truth, answers = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    scores = classification_scores(truth, answers, 3, None)
    assert scores[F1] == pytest.approx((0.5 + 0.8 + 2 / 3) / 3)
    assert scores["balanced accuracy"] == pytest.approx(2 / 3)
    counted = classification_scores(truth, answers, 3, 1, np.array([1, 0, 1, 1, 0, 0]))
    assert counted == {F1: 1.0, "balanced accuracy": 1.0}


def test_fixmatch_learns_from_strong_views_of_sure_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no pseudo-label is sure, training is what it is without unlabelled clips."""
    views = []
    monkeypatch.setattr(fixmatch, "strong_view", lambda *a: (views.append(1), strong_view(*a))[1])
    labelled, targets = [coloured(k % 2, k, 8) for k in range(4)], np.array([0, 1, 0, 1])
    others = [coloured(k % 2, 50 + k, 8) for k in range(4)]

    def weights(unlabelled: list, **changes: object) -> torch.Tensor:
        torch.manual_seed(0)
        model = build_backbone("small", 2, None, 8, SIZE)
        found, kept = [], []
        recipe = Recipe(steps=3, batch=2, ratio=1, **changes)
        losses = fixmatch_losses(model, labelled, targets, unlabelled, recipe, SIZE, kept)
        train(model, recipe, 0, losses, lambda *_: found.append(1))
        assert found == [1]
        assert len(kept) == (3 if unlabelled else 0)
        assert set(kept) <= ({0.0} if recipe.threshold == 1 else {1.0, 0.5, 0.0})
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    supervised = weights([])
    assert not views
    assert torch.equal(weights(others, threshold=1.0), supervised)
    assert len(views) == 6
    assert not torch.equal(weights(others, threshold=0.3), supervised)
    aligned = weights(others, threshold=0.3, align=True)
    assert torch.isfinite(aligned).all()
    with pytest.raises(NonFiniteLoss):
        weights(others, learning_rate=1e30)


def test_the_published_protocol_never_uses_the_strong_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixmatch, "strong_view", lambda *_: pytest.fail("it was used"))
    wide = [np.pad(coloured(k % 2, k, 8), [(0, 0), (0, 0), (0, 8), (0, 0)]) for k in range(4)]
    monkeypatch.setattr(fixmatch, "PUBLISHED_SCALES_PX", (36, 40))
    evaluated = []
    torch.manual_seed(0)
    model = build_backbone("small", 2, None, 8, SIZE)
    before = [p.detach().clone() for p in model.parameters()]
    recipe = replace(PUBLISHED, steps=20)

    def evaluate(step: int, averaged: torch.nn.Module) -> None:
        evaluated.append(step)
        assert classify(averaged, wide, SIZE).shape == (4,)

    losses = fixmatch_losses(model, wide, np.array([0, 1, 0, 1]), wide, recipe, SIZE, [])
    train(model, recipe, 0, losses, evaluate)
    assert evaluated == list(range(1, 21))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert PUBLISHED.rate(0) == 1.5625e-5
    assert PUBLISHED.rate(100) == pytest.approx(1.5625e-5 / 2)


def test_it_learns_to_tell_colours() -> None:
    clips, truth = [coloured(k % 2, k, 8) for k in range(12)], np.arange(12) % 2
    torch.manual_seed(0)
    model = build_backbone("small", 2, None, 8, SIZE)
    answers = []
    recipe = Recipe(steps=40, batch=4, ratio=1)
    losses = fixmatch_losses(model, clips[:4], truth[:4], clips[4:8], recipe, SIZE, [])
    train(model, recipe, 0, losses, lambda _, m: answers.append(classify(m, clips[8:], SIZE)))
    assert (answers[0] == truth[8:]).all()


def test_views_change_all_frames_alike() -> None:
    still = np.repeat(coloured(1, 0, 1), 8, axis=0)
    for seed in range(5):
        random = np.random.default_rng(seed)
        weak = weak_view(still, SIZE, random)
        strong = strong_view(weak, random)
        assert weak.shape == strong.shape == still.shape
        assert (weak == weak[:1]).all()
        assert (strong == strong[:1]).all()
    assert (strong_view(weak, np.random.default_rng(3)) == strong_view(weak, np.random.default_rng(3))).all()
    rows = endless(3, np.random.default_rng(0))
    assert sorted(next(rows) for _ in range(3)) == sorted(next(rows) for _ in range(3)) == [0, 1, 2]


@pytest.fixture
def timesformer() -> TimesformerModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 96}
    return TimesformerModel(TimesformerConfig(**sizes, num_frames=8, image_size=32, patch_size=16)).eval()


def test_timesformer_loads_the_published_names_and_a_folder(
    timesformer: TimesformerModel, tmp_path: Path
) -> None:
    theirs = {}
    for name, value in timesformer.state_dict().items():
        name = "norm" + name.removeprefix("layernorm") if name.startswith("layernorm.") else name
        for published, ours in PUBLISHED_NAMES.items():
            name = name.replace(ours, published)
        theirs[f"backbone.{name}"] = value
    assert "backbone.blocks.1.temporal_attn.proj.weight" in theirs
    assert "backbone.blocks.0.mlp.fc2.bias" in theirs
    torch.save(
        {"teacher": theirs | {"head.mlp.weight": torch.zeros(1)}, "args": argparse.Namespace(a=1)},
        tmp_path / "svt.pth",
    )
    timesformer.save_pretrained(tmp_path / "folder")
    video = torch.rand(1, 8, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = timesformer(((video + 1) / 2 - 0.45) / 0.225).last_hidden_state[:, 0]
        for weights in ("svt.pth", "folder"):
            model = TimeSformer(2, tmp_path / weights, 8, 32).eval()
            model.head = torch.nn.Identity()
            assert torch.allclose(model(video), wanted, atol=1e-5)
    with pytest.raises(BadInput, match="give --frames 8 --size 32"):
        TimeSformer(2, tmp_path / "svt.pth", 8, 224)
    del theirs["backbone.blocks.1.temporal_fc.bias"]
    torch.save({"teacher": theirs}, tmp_path / "short.pth")
    with pytest.raises(BadInput, match=r"temporal_dense.bias is missing"):
        TimeSformer(2, tmp_path / "short.pth", 8, 32)
    torch.save({"teacher": {}}, tmp_path / "empty.pth")
    with pytest.raises(BadInput, match="no published TimeSformer"):
        TimeSformer(2, tmp_path / "empty.pth", 8, 32)


def test_weights_are_distinguished_by_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "svt.pth", tmp_path / "svt"
    folder.mkdir()
    before = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        (folder / "model.safetensors").write_bytes(content)
        before.append((weights_facts(file), weights_facts(folder)))
    assert before[0][0] != before[1][0]
    assert before[0][1] != before[1][1]
    assert weights_facts(None) == "None"  # as results of earlier versions say
