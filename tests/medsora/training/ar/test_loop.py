"""medsora.training.ar.build, medsora.training.ar.stage, medsora.training.ar.samples,
medsora.training.ar.loss, medsora.training.ar.command, medsora.training.ar.dry_run,
medsora.training.cache.codes, medsora.training.run.described, medsora.sampling.tokens: EndoGen trains,
resumes and is sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsora.baselines.endogen.grid import frames_to_grid, grid_shape
from medsora.config.load import load_config, save_config
from medsora.config.schema import Config
from medsora.data.phantom import write_phantom
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import probe, read_frames
from medsora.errors import BadInput
from medsora.runtime.files import write_json
from medsora.sampling.command import main as sample_main
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.run import SamplingSettings, sample_videos
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import find_model, read_json_object
from medsora.training.ar import loop
from medsora.training.ar.build import build_ar_stage
from medsora.training.ar.command import main
from medsora.training.ar.loss import NextCodeLoss
from medsora.training.run.report import METRICS
from medsora.training.schedule import SampleKey
from medsora.vae import VQTokenizer
from tests.support import tiny_training as tiny
from tests.support.endogen import tiny_tokenizer as tokens


@pytest.fixture
def config(clips: Path, tmp_path: Path) -> Config:
    return tokens.configure(Path(), clips, tokens.write_tokenizer(tmp_path / "tokenizer"))


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("endogen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return work / tokens.train(tokens.configure(Path(), clips, tokens.write_tokenizer(work / "vq")))


def test_resumed_bit_for_bit(clips: Path, tmp_path: Path) -> None:
    tokenizer = tokens.write_tokenizer(tmp_path / "tokenizer")
    straight = tokens.train(tokens.configure(Path("straight"), clips, tokenizer))
    for steps in (2, 4):
        half = tokens.configure(Path("halves"), clips, tokenizer, train_ar__max_steps=steps)
        run = tokens.train(half)
    tiny.assert_same_run(straight, run, 4)
    logged = tiny.log_lines(run)
    assert {"held_out/loss", "held_out/accuracy"} <= logged[-1].keys() | logged[-2].keys()
    assert set().union(*logged) - {"step"} <= METRICS.keys(), "its page explains every metric"
    assert (run / "samples" / "step-0000004.png").is_file()
    tokens.write_tokenizer(tokenizer, seed=1)
    with pytest.raises(BadInput, match="codes of another tokenizer"):
        tokens.train(half)


def test_codes_are_those_of_the_grid_and_read_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_ar_stage(config)
    item = stage.samples[SampleKey(0, 0, 1)]
    video = stage.samples.clips.fixed_clip(1)["video"][:4]
    assert torch.equal(item["codes"], stage.tokenizer.encode(frames_to_grid(video, 2, 2)[None]).flatten())
    assert item["label"] in range(len(stage.samples.clips.labels.names) + 1)
    monkeypatch.setattr(VQTokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    stage.samples.cache.build(stage.tokenizer, stage.accelerator)


def test_a_part_of_the_labels_is_dropped(config: Config) -> None:
    config.train_ar.label_dropout = 0.5
    samples = build_ar_stage(config).samples
    none = len(samples.clips.labels.names)
    dropped = [samples[SampleKey(number, 0, 0)]["label"] == none for number in range(200)]
    assert 70 < sum(dropped) < 130


def test_weight_decay_is_of_matrices_alone(config: Config) -> None:
    optimizer = build_ar_stage(config).optimizer
    found = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert found == {2: 0.05, 1: 0.0}


def test_the_loss_of_no_knowledge_is_the_logarithm_of_the_codebook(config: Config) -> None:
    stage = build_ar_stage(config)
    loss = NextCodeLoss(torch.no_grad)(stage.model, stage.held_out_codes, stage.held_out_labels)
    assert float(loss) == pytest.approx(np.log(32), rel=1e-5)


def test_it_learns_and_starts_from_a_trained_one(config: Config, trained: Path) -> None:
    first, *_, last = [line["loss/total"] for line in tiny.log_lines(trained) if "loss/total" in line]
    assert last < first
    config.endogen.weights = str(trained)
    ours, theirs = build_ar_stage(config).model, EndoGenPipeline.from_run(trained).transformer
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_command_counts_and_trains(config: Config, capsys: pytest.CaptureFixture) -> None:
    save_config(config, Path("config.yaml"))
    main(["--config", "config.yaml", "--dry-run"])
    printed = capsys.readouterr().out
    assert "ready" in printed.splitlines()
    assert "64 codes per clip" in printed
    assert not config.ar_dir.exists()
    main(["--config", "config.yaml", "train_ar.max_steps=1"])
    assert find_model(config.ar_dir).step == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__frames": 5}, "no square grid of frames"),
        ({"data__size": 36}, "do not divide into the tokenizer's codes of 8"),
        ({"vae__kind": "causal"}, "vae.kind is causal, but EndoGen"),
        ({"vae__path": "nowhere"}, "no trained tokenizer in nowhere"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    clips: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    tokenizer = tokens.write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(BadInput, match=words):
        loop.train_ar(tokens.configure(Path(), clips, tokenizer, **changes))


def test_sixty_four_frames_in_one_grid(tmp_path: Path) -> None:
    shipped = load_config("endogen_phantom_64")
    assert grid_shape(shipped.data.frames) == (8, 8)
    write_phantom(tmp_path / "long", 3, 66, 16, seed=0)
    config = tokens.configure(
        Path(),
        tmp_path / "long",
        tokens.write_tokenizer(tmp_path / "tokenizer"),
        data__frames=shipped.data.frames,
        data__size=16,
        train_ar__max_steps=1,
    )
    found = find_model(tokens.train(config))
    assert (found.step, found.geometry["frames"]) == (1, 64)
    pipe = EndoGenPipeline.from_folder(found)
    assert (pipe.transformer.config.rows, pipe.transformer.config.cols) == (16, 16)
    assert pipe.transformer.config.mask_group == 2, "a line of a frame"
    (sheet,) = (config.ar_dir / "samples").glob("step-*/video-00000.mp4")
    assert read_frames(sheet).shape == (64, 16, 16, 3)


# Sampling


def test_saved_and_loaded_alike(trained: Path, tmp_path: Path) -> None:
    pipe = EndoGenPipeline.from_run(trained)
    pipe.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "model_index.json",
        "manifest.json",
        "transformer",
        "tokenizer",
    }
    again = EndoGenPipeline.from_pretrained(tmp_path / "saved")
    options = {"seeds": [3, 4], "label": pipe.labels[0], "guidance": 2.0, "top_k": 20}
    one, other = (each(**options).frames for each in (pipe, again))
    assert one.shape == (2, 4, 32, 32, 3)
    assert 0 <= one.min() < one.max() <= 1
    assert np.array_equal(one, other)
    assert pipe(num_videos=1, output_type="codes").frames.shape == (1, 8, 8)
    assert "autoregressive video model (EndoGen, preset tiny)" in pipe.card().markdown()
    path = tmp_path / "saved" / "transformer" / "config.json"
    write_json(path, read_json_object(path) | {"num_codes": 33})
    with pytest.raises(BadInput, match=r"config\.json"):
        EndoGenPipeline.from_pretrained(tmp_path / "saved")


def test_the_command_samples_the_kind_of_the_folder(trained: Path) -> None:
    label = find_model(trained).geometry["labels"][0]
    command = ["--model", str(trained), "--label", label, "--guidance", "1.5", "--top-k", "9", "--seed", "7"]
    sample_main([*command, "--out", "one", "--num-videos", "3", "--batch-size", "2"])
    sample_main([*command, "--out", "two", "--num-videos", "3", "--batch-size", "1", "--format", "frames"])
    manifest = json.loads(Path("one/manifest.json").read_text())
    assert manifest["synthetic"] is True
    assert manifest["settings"]["top_k"] == 9
    assert set(manifest["settings"]["weights_sha256"]) == {"transformer", "tokenizer"}
    assert "steps" not in manifest["settings"]
    tags = probe(Path("one/video-00002.mp4")).metadata
    assert tags["synthetic"] == "true"
    assert "seed 9, temperature 1, top-k 9, top-p 1" in tags["comment"]
    pipe = EndoGenPipeline.from_run(trained)
    frames = pipe(seeds=[7, 8, 9], label=label, guidance=1.5, top_k=9, output_type="uint8").frames
    pictures = [read_image(path) for path in sorted(Path("two/video-00001").glob("*.png"))]
    of_batch_1 = np.stack(pictures).astype(int)
    assert abs(of_batch_1 - frames[1]).max() <= 1  # the same codes, decoded in another batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 20}, "takes no --steps"),
        ({"window": 4}, "takes no --window"),
        ({"top_p": 0.0}, "top-p must be above 0"),
        ({"temperature": -1.0}, "temperature must lie"),
        ({"top_k": -1}, "top-k must be 0"),
        ({"label": "nothing"}, "no label 'nothing'"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(trained: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        sample_videos(SamplingSettings(model=str(trained), out=Path("out"), **options))


def test_commands_for_medsora_only_report_it(trained: Path) -> None:
    with pytest.raises(BadInput, match="is a model of EndoGenPipeline: load it by that class"):
        MedSoraPipeline.from_run(trained)
