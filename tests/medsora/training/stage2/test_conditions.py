"""medsora.training.stage2.inputs, medsora.training.stage2.build: labels and given frames in stage 2: dropped,
balanced, given as often as configured, the same on resuming.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsora.config.schema import Config, PhaseConfig
from medsora.denoiser import MedSora
from medsora.diffusion import CLEAN
from medsora.errors import BadInput
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import find_model
from medsora.training.schedule import SampleKey, Schedule, StepBatches, balanced_order
from medsora.training.stage2.build import build_denoiser_stage, start_from
from medsora.training.stage2.stage import Stage2
from tests.support import tiny_pipeline
from tests.support import tiny_training as tiny

CONDITIONS = {
    "data__frames": 9,
    "data__labels": "labels.csv",
    "data__balance": True,
    "train_dit__first_frame_prob": 0.6,
    "train_dit__eval_every": 100,
}


def configure(work: Path, clips: Path, vae_folder: Path, **changes: Any) -> Config:
    return tiny.tiny_config(work, clips, **{"vae__path": str(vae_folder)} | CONDITIONS | changes)


def items(stage: Stage2, count: int) -> list[dict[str, Any]]:
    return [stage.samples[SampleKey(n, 0, n % len(stage.samples.clips))] for n in range(count)]


@pytest.fixture(scope="module")
def stage(clips: Path, vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage2:
    work = tmp_path_factory.mktemp("conditions")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return build_denoiser_stage(configure(work, clips, vae_folder, cache__latents="disk"))


def test_stopped_and_gone_on_with_it_is_the_run_that_nobody_stopped(
    clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    runs = []
    for name, stops in (("straight", (4,)), ("stopped", (2, 4))):
        for steps in stops:
            config = configure(
                tmp_path / name, clips, vae_folder, cache__latents="disk", train_dit__max_steps=steps
            )
            runs.append(tiny.train("dit", config))
    ours, theirs = (tiny.saved_tensors(run, 4) for run in (runs[0], runs[-1]))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert "ema/diffusion_pytorch_model.safetensors/labels.weight" in ours
    geometry = json.loads((runs[0] / "pipeline.json").read_text())
    assert geometry["labels"] == ["instrument", "neither", "polyp"]
    assert geometry["given_frames"] == [1]
    assert (geometry["interval"], geometry["crop"]) == (config.data.interval, config.data.crop)
    assert MedSoraPipeline.from_folder(find_model(runs[0])).labels == geometry["labels"]
    # Training ran outside the checkout, whose scripts are not there.
    assert f"sample with 'medsora sample --model {runs[0]} --out" in (runs[0] / "messages.txt").read_text()


def test_labels_are_those_of_the_table_and_a_part_is_dropped(stage: Stage2, clips: Path) -> None:
    with (clips / "labels.csv").open() as table:
        label_of = {row["file"]: row["label"] for row in csv.DictReader(table)}
    names = stage.samples.clips.labels.names
    assert stage.model.config.classes == len(names) == 3
    for item in items(stage, 4):
        right = names.index(label_of[item["name"].partition("@")[0]])
        assert item["label"] in (right, 3)
    dropped = [stage.samples._label(SampleKey(n, 0, 0)) == 3 for n in range(2000)]
    assert sum(dropped) / 2000 == pytest.approx(0.1, abs=0.02)
    assert all(stage.held_out._label(SampleKey(n, 0, 0)) < 3 for n in range(100))


def test_joint_images_have_no_label(stage: Stage2) -> None:
    batch = stage.samples.collate(items(stage, 4))
    labels = stage.inputs.noised_latents(batch).labels
    assert torch.equal(labels[:, :3], batch["label"][:, None].expand(4, 3))
    assert labels[:, 3:].unique().tolist() == [3]


def test_frames_are_given_as_often_as_configured_and_never_in_evaluation(stage: Stage2) -> None:
    counts = Counter(stage.samples._given_latents(n) for n in range(2000))
    assert counts[1] / 2000 == pytest.approx(0.6, abs=0.03)
    assert counts[0] + counts[1] == 2000
    assert "given" not in stage.held_out[SampleKey(0, 0, 0)]
    assert not any(item["needed"] for item in items(stage, 30) if item["given"])


def test_given_latents_are_clean_the_frames_own_and_not_in_the_loss(
    stage: Stage2, clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    """With the cache and without: the first frame is encoded alone, as when sampling."""
    plain = build_denoiser_stage(configure(tmp_path, clips, vae_folder, data__flip=False))
    numbers = [n for n in range(40) if stage.samples._given_latents(n)][:2]
    numbers += [n for n in range(40) if not stage.samples._given_latents(n)][:1]
    keys = [SampleKey(n, 0, n % 4) for n in numbers]
    for one in (stage, plain):
        batch = one.samples.collate([one.samples[key] for key in keys])
        noised = one.inputs.noised_latents(batch)
        assert batch["given"].tolist() == [1, 1, 0]
        assert torch.equal(noised.z_t[:2, 0], noised.z_0[:2, 0])
        assert not torch.isclose(noised.z_t[2, 0], noised.z_0[2, 0]).all()
        assert noised.latent_t[:2, 0].tolist() == [CLEAN, CLEAN]
        assert torch.equal(noised.latent_t[:, 1:], noised.t[:, None].expand(-1, 4))
        assert noised.weights[:, 0].tolist() == [0, 0, 1]
        assert noised.weights[:, 1:].all()
        eps = torch.zeros_like(noised.z_0).requires_grad_()
        parts = (eps, torch.zeros_like(eps), noised.z_0, noised.z_t, noised.noise, noised.latent_t)
        one.loss.diffusion.hybrid_loss(*parts, weights=noised.weights).total.sum().backward()
        assert not eps.grad[:2, 0].any()
        assert eps.grad[:2, 1:].any(dim=2).any()
    with torch.no_grad():
        alone = plain.vae.encode_moments(batch["video"][:, :1])
        drawn = plain.inputs._noise(noised.z_0, batch, "posterior")[:, :1]
        expected = plain.vae.sample_latents(*alone, noise=drawn)
    torch.testing.assert_close(noised.z_0[:2, :1], expected[:2])
    assert not torch.allclose(noised.z_0[2, 0], expected[2, 0], atol=1e-3)  # nothing given: the clip's own


def test_balanced_every_label_comes_equally_often_in_any_split_of_the_work() -> None:
    labels = [0] * 90 + [1] * 8 + [2] * 2
    order = balanced_order(np.array(labels), np.random.default_rng(0))
    assert len(order) == 100
    counts = Counter(labels[k] for k in order)
    assert set(counts.values()) == {33, 34}
    assert set(Counter(k for k in order.tolist() if labels[k] == 2).values()) <= {16, 17}
    assert max(Counter(k for k in order.tolist() if labels[k] == 0).values()) == 1

    schedule = Schedule([PhaseConfig(1e-3, 4)], 100, epochs=2, max_steps=None)
    whole = [key for batch in StepBatches(schedule, 3, labels=labels) for key in batch]
    shares = [list(StepBatches(schedule, 3, rank=r, processes=2, labels=labels)) for r in range(2)]
    together = [key for pair in zip(*shares, strict=True) for batch in pair for key in batch]
    assert together == whole
    assert [key.index for key in whole[:100]] != [key.index for key in whole[100:]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__labels": "none"}, "data.balance needs labels"),
        ({"train_dit__first_frame_prob": 1.5}, "train_dit.first_frame_prob is 1.5"),
        ({"train_dit__label_dropout": -0.1}, "train_dit.label_dropout is -0.1"),
        ({"data__frames": 16}, r"of clips of 16 frames only 8 can be given"),
        ({"data__frames": 8}, r"only none"),
        ({"train_dit__given_frames": [9]}, r"of clips of 9 frames only 1 can be given"),
        ({"train_dit__given_frames": []}, r"given_frames is \[\]"),
        ({"alignment__correlation": "batch"}, "correlation batch takes every sample"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=sentence):
        configure(tmp_path, tmp_path / "clips", tmp_path, **changes)


def test_a_trained_denoiser_is_gone_on_with_at_another_length(
    clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    plain = {"vae__path": str(vae_folder), "train_dit__max_steps": 1}
    trained = tiny.train("dit", tiny.tiny_config(tmp_path / "short", clips, data__frames=8, **plain))
    overrides = {"denoiser__weights": str(trained), "denoiser__overrides": dict(tiny.DENOISER)}
    longer = build_denoiser_stage(tiny.tiny_config(tmp_path / "long", clips, **plain, **overrides))
    averaged = find_model(trained).denoiser
    expected = MedSora.from_pretrained(averaged).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in longer.model.state_dict().items())
    with pytest.raises(BadInput, match=r"lacks labels\.weight"):
        build_denoiser_stage(configure(tmp_path, clips, vae_folder, denoiser__weights=str(trained)))


@pytest.mark.parametrize(
    "changes",
    [{"prediction": "velocity"}, {"heads": 1}, {"window": 2}, {"scan": "raster"}, {"mixing": "mixed"}],
    ids=str,
)
def test_weights_of_a_denoiser_that_computes_otherwise_are_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Their shapes are the same."""
    tiny_pipeline.tiny_pipeline().save_pretrained(tmp_path)
    start_from(model := tiny_pipeline.tiny_denoiser(seed=1), str(tmp_path))
    expected = tiny_pipeline.tiny_denoiser().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    ((name, value),) = changes.items()
    with pytest.raises(BadInput, match=f"was trained with {name} .*, but this denoiser has {value}; take"):
        start_from(tiny_pipeline.tiny_denoiser(**changes), str(tmp_path))


def test_a_resumed_run_does_without_the_model_that_it_began_with(
    clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    def configure_steps(steps: int, **changes: str) -> Config:
        options = {"vae__path": str(vae_folder), "train_dit__max_steps": steps, "alignment__weight": 0}
        return tiny.tiny_config(tmp_path / str(len(changes)), clips, **options | changes)

    trained = tiny.train("dit", configure_steps(1))
    tiny.train("dit", configure_steps(1, denoiser__weights=str(trained)))
    shutil.rmtree(trained)
    run = tiny.train("dit", configure_steps(2, denoiser__weights=str(trained)))
    assert (run / "checkpoints" / "step-0000002").is_dir()


def sorted_into_folders(clips: Path, folder: Path) -> Path:
    for number, clip in enumerate(sorted(clips.glob("*.mkv"))):
        place = folder / ("adenoma", "polyp")[number % 2] / clip.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)
    return folder


@pytest.mark.parametrize("described_in", ["checkpoint", "pipeline.json"])
def test_renaming_a_folder_does_not_swap_the_labels_of_a_finished_run(
    clips: Path, vae_folder: Path, tmp_path: Path, described_in: str
) -> None:
    folder = sorted_into_folders(clips, tmp_path / "sorted")
    changes = {"data__root": str(folder), "data__labels": "folders", "data__balance": False}
    config = configure(tmp_path, clips, vae_folder, **changes, train_dit__max_steps=1)
    run = tiny.train("dit", config)
    state = run / "checkpoints" / "step-0000001" / "state.json"
    assert json.loads(state.read_text())["labels"] == ["adenoma", "polyp"]
    described = (run / "pipeline.json").read_text()
    if described_in == "checkpoint":
        (run / "pipeline.json").unlink()
    (folder / "adenoma").rename(folder / "sessile")
    with pytest.raises(BadInput, match=r"trained with the labels adenoma, polyp, but .* sessile"):
        tiny.train("dit", config)
    assert not (run / "pipeline.json").is_file() or (run / "pipeline.json").read_text() == described
    shutil.rmtree(folder / "sessile")
    if described_in == "pipeline.json":
        assert build_denoiser_stage(config).samples.clips.labels.names == ("adenoma", "polyp")


def test_a_trained_denoiser_s_labels_are_matched_by_name(
    clips: Path, vae_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = sorted_into_folders(clips, tmp_path / "sorted")
    changes = {"data__root": str(folder), "data__labels": "folders", "data__balance": False}
    first = configure(tmp_path / "first", clips, vae_folder, **changes, train_dit__max_steps=1)
    trained = tiny.train("dit", first)
    (folder / "adenoma").rename(folder / "sessile")
    overrides = {"denoiser__weights": str(trained), "denoiser__overrides": dict(tiny.DENOISER)}
    second = build_denoiser_stage(configure(tmp_path / "second", clips, vae_folder, **changes, **overrides))
    theirs = MedSora.from_pretrained(find_model(trained).denoiser).labels.weight
    assert second.samples.clips.labels.names == ("polyp", "sessile")
    assert torch.equal(second.model.labels.weight, theirs[[1, 2, 2]])
    assert "labels adenoma, polyp; each of sessile starts" in caplog.text


def test_the_number_of_labels_is_the_clips_business(clips: Path, vae_folder: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, clips, vae_folder)
    config.denoiser = dataclasses.replace(config.denoiser, overrides={**tiny.DENOISER, "classes": 2})
    with pytest.raises(BadInput, match=r"leave denoiser\.overrides\.classes out"):
        build_denoiser_stage(config)
