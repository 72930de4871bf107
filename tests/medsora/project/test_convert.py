"""medsora.project.convert: `medsora convert SYSTEM FILE.pt OUT` makes a folder that samples and trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from medsora import MedSoraPipeline
from medsora.__main__ import parser
from medsora.errors import BadInput
from medsora.project import convert
from medsora.sampler import learns_variance
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import find_model
from tests.support.endogen import tiny_tokenizer
from tests.support.endogen.naive import published_shapes
from tests.support.naive_endora import published_state

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "vae.json").write_text(json.dumps(VAE), encoding="utf-8")
    torch.save({"ema": published_state(24, 4, tokens=4, frames=3, classes=2)}, tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("x.pt", "out")]
    return ["convert", "endora", *paths, "--vae", str(tmp_path / "vae.json"), "--heads", "3"]


def test_a_converted_model_samples_as_it_was_published(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    convert.run(parser().parse_args(arguments), Console())
    assert "3 frames" in capsys.readouterr().out
    pipe = MedSoraPipeline.from_pretrained(tmp_path / "out")
    assert learns_variance(pipe.scheduler)
    assert pipe.labels == ["0", "1"]
    out = pipe(num_inference_steps=3, seeds=[1, 2], label="1", guidance_scale=2.0)
    assert out.frames.shape == (2, 3, 32, 32, 3)
    again = pipe(num_inference_steps=3, seeds=[2], label="1", guidance_scale=2.0)
    assert abs(again.frames[0] - out.frames[1]).max() < 1e-4
    assert find_model(tmp_path / "out").geometry["size"] == [32, 32]
    assert "Endora" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words"), [("out", "is there already"), ("none.json", "no such config.*--vae")]
)
def test_bad_input_is_one_sentence(arguments: list[str], tmp_path: Path, name: str, words: str) -> None:
    options = parser().parse_args(arguments)
    if name == "out":
        options.out.mkdir()
    else:
        options.vae = str(tmp_path / name)
    with pytest.raises(BadInput, match=words) as refused:
        convert.run(options, Console())
    assert "\n" not in str(refused.value)
    assert (name == "out") == options.out.exists()


@pytest.mark.parametrize(
    ("system", "more", "words"),
    [
        ("endora", ["--frames", "16"], "--frames is for endogen, not for endora; leave it out"),
        ("endogen", ["--heads", "4"], "--heads is for endora, not for endogen"),
        ("endogen", ["--frames", "-4"], "-4 frames is no square grid"),
        ("endogen", ["--size", "0"], "clips of 0x0 pixels do not divide"),
    ],
)
def test_options_that_would_not_count(system: str, more: list[str], words: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer.write_tokenizer(tmp_path / "tokenizer")
    line = ["convert", system, "x.pt", str(tmp_path / "out"), "--vae", str(tokenizer), *more]
    with pytest.raises(BadInput, match=words):
        convert.run(parser().parse_args(line), Console())


def test_endogen_converts_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shapes = published_shapes(192, 6, 512, 32, 2)
    torch.save(
        {"model": {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}}, tmp_path / "x.pt"
    )
    tokenizer = tiny_tokenizer.write_tokenizer(tmp_path / "tokenizer")
    out, clip = tmp_path / "out", ["--frames", "4", "--size", "32"]
    line = ["convert", "endogen", str(tmp_path / "x.pt"), str(out), *clip]
    with pytest.raises(BadInput, match="by --vae"):
        convert.run(parser().parse_args(line), Console())
    convert.run(parser().parse_args([*line, "--vae", str(tokenizer)]), Console())
    pipe = EndoGenPipeline.from_pretrained(out)
    assert pipe(seeds=[1], label="1").frames.shape == (1, 4, 32, 32, 3)
    assert "4 frames" in capsys.readouterr().out
    assert "EndoGen" in (out / "README.md").read_text(encoding="utf-8")
