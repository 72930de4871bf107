"""medsora.project.export, medsora.saved.card, medsora.saved.hub: `python -m medsora export`: a folder that
stands alone, samples the same, and has a card.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import RepoUrl
from rich.console import Console

from medsora import MedSoraPipeline
from medsora.__main__ import parser
from medsora.app.models import Models
from medsora.config import shipped
from medsora.config.load import config_from_dict, save_config
from medsora.data.sheet import save_image
from medsora.errors import BadInput
from medsora.project import export as export_model
from medsora.project.export import export_run
from medsora.sampling.command import main as sample_command
from medsora.sampling.command import make_parser
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.card import INTENDED_USE, NOT_DESCRIBED, evaluation_lines
from medsora.saved.hub import HTTP_ERRORS
from tests.support.endogen import tiny_tokenizer as tokens
from tests.support.tiny_pipeline import GEOMETRY, tiny_pipeline, write_run

RESULTS = {
    "protocol": {"frames": 16, "size": [128, 128]},
    "sets": {"real": {"clips_used": 64}, "generated": {"clips_used": 32}},
    "distances": {"fvd": {"title": "FVD", "unit": "", "value": 512.34}},
    "scores": {"motion": {"title": "motion", "unit": "px", "real": 3.6, "generated": None}},
    "warnings": ["few\nclips"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves, as far as export reads it."""
    run = write_run(tmp_path_factory.mktemp("runs") / "mine" / "dit-tiny")
    config = config_from_dict({"run": {"name": "mine"}, "denoiser": {"preset": "tiny"}}, "it")
    save_config(config, run / "config.yaml")
    lines = [
        {"step": 5, "loss/mse": 0.5},
        {"step": 5, "speed/elapsed_s": 5400.0},
        {"step": 10, "loss/mse": 0.25, "speed/elapsed_s": 9000.0},
        {"step": 10, "held_out/mse": 0.125},
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (run / "command.txt").write_text("train_dit.py --config /home/me/configs/mine.yaml\n", encoding="utf-8")
    (run / "versions.json").write_text('{"torch": "2.0"}', encoding="utf-8")
    save_image(run / "latest-sheet.png", np.zeros((8, 8, 3), np.uint8))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained.parent, tmp_path / "mine")
    return tmp_path / "mine" / "dit-tiny"


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def export(*arguments: str) -> str:
    options = parser().parse_args(["export", *arguments])
    console = Console(record=True, width=200)
    assert options.work == "medsora.project.export"
    export_model.run(options, console)
    return console.export_text()


def test_the_folder_samples_what_the_run_does(run: Path, tmp_path: Path) -> None:
    output = export(str(run.parent), str(tmp_path / "out"), "--name", "My model")
    assert str(tmp_path / "out") in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "denoiser", "manifest.json", "model_index.json", "samples.png", "scheduler", "vae",
    ]  # fmt: skip
    ours = MedSoraPipeline.from_pretrained(tmp_path / "out").to("cpu")
    theirs = MedSoraPipeline.from_run(run)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    frames = ours(num_videos=2, num_inference_steps=2, seeds=[0, 1]).frames
    assert frames.shape == (2, 8, 32, 16, 3)
    assert np.array_equal(frames, theirs(num_inference_steps=2, seeds=[0, 1]).frames)


def test_an_endogen_run_is_exported_as_its_own_pipeline(tmp_path: Path) -> None:
    run = tokens.write_run(tmp_path / "coded" / "endogen-tiny")
    values = {"run": {"name": "coded"}, "vae": {"kind": "vq"}, "endogen": {"preset": "tiny"}}
    save_config(config_from_dict(values, "it"), run / "config.yaml")
    lines = [
        {"step": 2, "loss/total": 3.5, "speed/elapsed_s": 1800.0},
        {"step": 2, "held_out/loss": 3.25, "held_out/accuracy": 0.125},
        {"step": 4, "loss/total": 2.0},
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    export(str(run.parent), str(tmp_path / "out"), "--checkpoint", "2")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "manifest.json", "model_index.json", "tokenizer", "transformer",
    }  # fmt: skip
    ours = EndoGenPipeline.from_pretrained(tmp_path / "out")
    theirs = EndoGenPipeline.from_run(run, checkpoint=2)
    options = {"seeds": [0, 1], "label": "polyp", "guidance": 2.0, "output_type": "codes"}
    assert torch.equal(ours(**options).frames, theirs(**options).frames)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "autoregressive" in front_matter(card)["tags"]
    for words in (
        "# EndoGen-tiny coded",
        "EndoGenPipeline.from_pretrained(",
        "bleeding, polyp",
        "the raw weights after 2 optimiser steps",
        "| adamw, learning rate | 0.0001 with batch 8 |",
        "| cross entropy, training (nats per code) | 3.5 |",
        "| codes predicted correctly, held out | 0.125 |",
        "| hours of the last stage | 0.5 |",
    ):
        assert words in card, words
    for word in ("EMA", "joint images", "alignment"):
        assert word not in card, word


def test_nothing_in_the_folder_shows_where_it_was_made(run: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "results.json"
    left_out = f"left out of {tmp_path}/private/real: a.mp4: too short"
    evaluation.write_text(json.dumps(RESULTS | {"warnings": [left_out]}), encoding="utf-8")
    export_run(run, tmp_path / "out", evaluation=evaluation)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "**Note:** left out of …/real: a.mp4: too short" in card
    assert "| FVD | 512.3 |" in card


def test_the_card_contains_what_a_stranger_needs(run: Path, tmp_path: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    (tmp_path / "data.md").write_text("210 videos | of ours.\n", encoding="utf-8")
    describe = ["--data-description", f"@{tmp_path / 'data.md'}", "--licence", "cc-by-nc-4.0"]
    export(str(run), str(tmp_path / "out"), "--checkpoint", "5", *describe)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["license"] == "cc-by-nc-4.0"
    assert "synthetic" in front_matter(card)["tags"]
    for word in (
        "MedSora-tiny mine",
        "preset custom",  # this test's denoiser is smaller than any preset
        "8 frames of 32x16 pixels, shown at 8",
        "moving average (EMA) of the weights after 5 optimiser steps",
        "210 videos | of ours.",
        "| noise error, training | 0.5 |",
        "| versions | torch 2.0 |",
        "| command | train_dit.py --config …/mine.yaml |",
        "| hours of the last stage | 1.5 |",
        "32 generated clips against 64 real clips",
        "| FVD | 512.3 |",
        "| motion (real clips: 3.6) | undefined px |",
        "**Note:** few clips",
        "![Generated clips](samples.png)",
        "## Limits",
        INTENDED_USE,
    ):
        assert word in card, word
    assert "held out" not in card  # that was logged after this checkpoint


@pytest.mark.parametrize("vae", [{}, {"path": "OWN"}, {"path": "another/vae"}, {"kind": "per-frame"}])
def test_a_card_scores_the_vae_that_the_model_takes(run: Path, tmp_path: Path, vae: dict[str, str]) -> None:
    """Stage 1 of the same run may have trained one that stage 2 did not take."""
    own = vae in ({}, {"path": "OWN"})
    vae = {key: value.replace("OWN", str(run.parent / "vae" / "final")) for key, value in vae.items()}
    (run.parent / "vae").mkdir()
    (run.parent / "vae" / "log.jsonl").write_text('{"step": 1, "held_out/psnr": 31.5}\n', encoding="utf-8")
    values = {"run": {"name": "mine"}, "denoiser": {"preset": "tiny"}, "vae": vae}
    save_config(config_from_dict(values, "it"), run / "config.yaml")
    card = export_run(run, tmp_path / "out")
    assert (("PSNR of the VAE, held out (dB)", "31.5") in card.training) == own


def test_a_card_without_facts_reports_it(run: Path, tmp_path: Path) -> None:
    (run / "latest-sheet.png").unlink()
    export_run(run, tmp_path / "out", raw=True)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert NOT_DESCRIBED in card
    assert "None was given" in card
    assert "the raw weights after 10 optimiser steps" in card
    assert "samples.png" not in card
    assert "license" not in front_matter(card)


def test_the_command_in_a_card_works_in_a_checkout_and_installed(run: Path, tmp_path: Path) -> None:
    """A wheel has no scripts, a checkout that is not installed no `medsora`."""
    export_run(run, tmp_path / "out")
    for card in (tmp_path / "out" / "README.md", shipped.models_folder() / "phantom" / "README.md"):
        (command,) = re.findall(r"^or `([^`]+)`", card.read_text(encoding="utf-8"), re.MULTILINE)
        assert command.startswith("python -m medsora sample ")
        assert make_parser().parse_args(command.split()[4:]).num_videos == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}/vae", "out"], "is no run folder of stage 2"),
        (["{run}", "{run}"], "is there already"),
        (["{run}", "out", "--checkpoint", "7"], "holds no complete checkpoint"),
        (["{run}", "out", "--evaluation", "nowhere.json"], "there is no evaluation nowhere.json"),
        (["{run}", "out", "--evaluation", "{run}/versions.json"], "is not what medsora evaluate writes"),
        (["{run}", "out", "--data-description", "@nowhere.md"], "nowhere.md cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=words):
        export(*[argument.format(run=run) for argument in arguments])
    assert not Path("out").exists()


def test_a_model_comes_with_medsora_once_it_is_exported_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"there is no folder phantom; .* come with MedSora: none\."):
        MedSoraPipeline.from_pretrained("phantom")
    (tmp_path / "models").mkdir()
    export(str(run), str(tmp_path / "models" / "phantom"), "--dtype", "fp16")
    assert 'from_pretrained("phantom")' in (tmp_path / "models" / "phantom" / "README.md").read_text()
    pipeline = MedSoraPipeline.from_pretrained("phantom")
    assert {tensor.dtype for tensor in pipeline.denoiser.state_dict().values()} == {torch.float32}
    weights = [path.stat().st_size for path in (tmp_path / "models" / "phantom").rglob("*.safetensors")]
    assert sum(weights) < 3 * (pipeline.denoiser.num_parameters() + pipeline.vae.num_parameters())
    sample_command(["--model", "phantom", "--num-videos", "1", "--steps", "1"])
    assert (tmp_path / "videos" / "video-00000.mp4").is_file()
    assert Models(["phantom"], "cpu").names == ["phantom"]
    with pytest.raises(BadInput, match=r"there is no folder phanton; .* come with MedSora: phantom\."):
        MedSoraPipeline.from_pretrained("phanton")
    (tmp_path / "phantom").mkdir()
    with pytest.raises(BadInput, match=r"^phantom holds neither a run nor a saved pipeline"):
        MedSoraPipeline.from_pretrained("phantom")  # an existing path wins


def test_two_runs_in_one_folder_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, run.parent / "dit-S")
    with pytest.raises(BadInput, match=r"did you mean .*dit-S or .*dit-tiny\?"):
        export(str(run.parent), str(tmp_path / "out"))


def test_evaluation_lines_name_the_protocol_if_the_results_do() -> None:
    assert "of 128x128 pixels." in evaluation_lines(RESULTS)[0]  # written before there were two
    named = RESULTS | {"protocol": RESULTS["protocol"] | {"name": "stylegan-v"}}
    assert "of 128x128 pixels (protocol stylegan-v)." in evaluation_lines(named)[0]


def test_evaluation_lines_refuse_other_files() -> None:
    with pytest.raises(KeyError):
        evaluation_lines({})


# The hub


class StubHub:
    """Takes the place of `HfApi`: remembers what was uploaded, or refuses."""

    uploaded: dict[str, bytes]
    refusal: Exception | None = None
    public = False  # whether the repository was there before, for all to see

    def __init__(self, token: str | None = None) -> None:
        type(self).token = token
        type(self).uploaded = {}

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        if self.refusal:
            raise self.refusal
        assert exist_ok
        type(self).private = private
        return RepoUrl(f"https://huggingface.co/{repo}")

    def model_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private and not self.public)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> None:
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        assert all(any(path.match(pattern) for pattern in allow_patterns) for path in files)
        type(self).uploaded = {str(path.relative_to(folder_path)): path.read_bytes() for path in files}
        type(self).repo = repo_id


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[StubHub]:
    monkeypatch.setattr("medsora.saved.hub.HfApi", StubHub)
    monkeypatch.setattr(StubHub, "refusal", None)
    return StubHub


def test_push_to_hub_uploads_a_loadable_model_and_its_card(hub: type[StubHub], tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    address = pipeline.push_to_hub("somebody/clips", private=True, token="secret")
    assert (address, hub.repo, hub.private, hub.token) == (
        "https://huggingface.co/somebody/clips", "somebody/clips", True, "secret",
    )  # fmt: skip
    for name, content in hub.uploaded.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    card = hub.uploaded["README.md"].decode()
    assert 'MedSoraPipeline.from_pretrained("somebody/clips")' in card
    assert NOT_DESCRIBED in card
    again = MedSoraPipeline.from_pretrained(tmp_path)
    assert {key: again.config[key] for key in GEOMETRY} == GEOMETRY
    assert not any(path.suffix in (".bin", ".pt", ".ckpt") for path in map(Path, hub.uploaded))


def test_export_pushes_the_folder_that_it_made(hub: type[StubHub], run: Path, tmp_path: Path) -> None:
    output = export(str(run), str(tmp_path / "out"), "--push", "somebody/clips")
    assert "uploaded: https://huggingface.co/somebody/clips" in output
    assert hub.uploaded["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert "denoiser/diffusion_pytorch_model.safetensors" in hub.uploaded


def test_what_is_to_be_private_is_not_uploaded_to_a_public_repository(
    hub: type[StubHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub leaves one that is there already as it is."""
    monkeypatch.setattr(hub, "public", True)
    with pytest.raises(BadInput, match="somebody/clips is there already and public, so nothing was uploaded"):
        tiny_pipeline().push_to_hub("somebody/clips", private=True)
    assert not hub.uploaded
    tiny_pipeline().push_to_hub("somebody/clips")
    assert hub.uploaded
    with pytest.raises(BadInput, match="--private belongs to --push"):
        export("run", "out", "--private")


@pytest.mark.parametrize("kind", [OSError, HTTP_ERRORS[0]], ids=["refused", "no connection"])
def test_a_hub_that_refuses_is_one_sentence(
    kind: type[Exception], hub: type[StubHub], monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "refusal", kind("401\nUnauthorized"))
    with pytest.raises(BadInput, match=r"somebody/clips cannot be written on the hub \(401 Unauthorized\)"):
        export(str(run), str(tmp_path / "out"), "--push", "somebody/clips")
    assert (tmp_path / "out" / "README.md").is_file()
