"""medsora.training.export_base, medsora.training.command_line: what ships is what was trained, and its note
says how, without a word of the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin

from medsora.config.load import load_config
from medsora.errors import BadInput
from medsora.saved.find import trained_tokenizer
from medsora.training.command_line import documented_command
from medsora.training.export_base import main
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer
from medsora.vae.choices import TOKENIZERS
from tests.support.tiny_training import BASE

SMALL = TOKENIZERS["phantom"] | {"block_out_channels": [8, 8, 8, 8], "latent_channels": 8}
Export = Callable[..., str]


def ended_run(vae: ModelMixin, name: str) -> str:
    run = Path("runs") / name / "vae"
    vae.save_pretrained(run / "final")
    (run / "log.jsonl").write_text(json.dumps({"step": 7}) + "\n")
    return str(run)


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Run the command in an empty folder, with two clips; return the note."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export_base", *arguments, "--clips", "2", "--size", "32"])
        main()
        return Path(arguments[1]).with_suffix(".md").read_text()

    return run


def test_a_tokenizer_ships_beside_its_autoencoder(export: Export) -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer.from_base(SMALL)
    run = ended_run(tokenizer, "tokenizer")
    other = ended_run(VQTokenizer.from_base(SMALL, quantize=False), "autoencoder")
    Path("configs").mkdir()
    note = export(str(Path(run).absolute()), "configs/small", f"--unquantised={Path(other).absolute()}")
    assert "export_base runs/tokenizer/vae configs/small --unquantised=runs/autoencoder/vae --clips 2" in note
    assert str(Path.cwd()) not in note
    rows = dict(line.strip("| ").split(" | ", 1) for line in note.splitlines() if line.startswith("| "))
    for row in ("PSNR (dB)", "PSNR in grids of 4x4 frames (dB)"):
        assert [float(value) > 0 for value in rows[row].split(" | ")] == [True, True]
    used = int(rows["codes used"].strip(" |"))
    assert 1 <= float(rows["perplexity of the codes"].strip(" |")) <= used <= 4096
    assert float(rows["part of the codebook used"].strip(" |")) == pytest.approx(used / 4096, rel=1e-3)
    size_bytes = Path("configs/small.safetensors").stat().st_size
    assert f"({size_bytes / 2**20:.2f} MiB) in fp16" in note
    assert "7 steps in the last run" in note
    shipped = trained_tokenizer(
        load_config(
            "endogen_phantom",
            ["vae.path=base", "vae.base=configs/small.json", "vae.weights=configs/small.safetensors"],
        )
    )
    for name, value in tokenizer.base.state_dict().items():
        torch.testing.assert_close(shipped.base.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in shipped.parameters())


def test_a_vae_ships_without_its_compensation(export: Export) -> None:
    vae = FrequencyCompensatedVAE.from_base(BASE)
    ended_run(vae, "base")
    note = export("runs/base", "small")
    assert "7 steps in the last run" in note
    assert "from the mean" in note
    assert "codes" not in note
    loaded = FrequencyCompensatedVAE.from_base("small.json", weights="small.safetensors")
    assert loaded.base_state_dict().keys() == vae.base_state_dict().keys()


def test_the_weights_before_and_after_are_averaged(export: Export) -> None:
    vae = FrequencyCompensatedVAE.from_base(BASE)
    before = FrequencyCompensatedVAE.from_base(BASE)
    before.save_base("before.json", "before.safetensors")
    note = export(ended_run(vae, "base"), "small", "--average", "before.safetensors", "--share", "0.75")
    assert "--average before.safetensors --share 0.75" in note
    mean = FrequencyCompensatedVAE.from_base("small.json", weights="small.safetensors").base_state_dict()
    for name, value in vae.base_state_dict().items():
        expected = 0.75 * value + 0.25 * before.base_state_dict()[name]
        torch.testing.assert_close(mean[name], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("share", ["0", "1", "nan", "half"])
def test_a_share_lies_between_the_two(share: str, export: Export, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(BadInput, match="belong together"):
        export("runs/none", "small", "--average", "before.safetensors")
    with pytest.raises(SystemExit):
        export("runs/none", "small", "--average", "before.safetensors", "--share", share)
    assert f"must be a number between 0 and 1, not {share}" in capsys.readouterr().err


def test_what_cannot_ship_is_one_sentence(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ended_run(VQTokenizer.from_base(SMALL, quantize=False), "autoencoder")
    with pytest.raises(BadInput, match="without quantisation, so it has no codes"):
        export(plain, "small")
    run = ended_run(VQTokenizer.from_base(SMALL), "tokenizer")
    with pytest.raises(BadInput, match=r"is not runs/tokenizer/vae without quantisation; train it"):
        export(run, "small", "--unquantised", run)
    with pytest.raises(BadInput, match="belong to another architecture"):
        export(
            run,
            "small",
            "--share",
            "0.5",
            "--average",
            str(Path("runs/autoencoder/vae/final/diffusion_pytorch_model.safetensors")),
        )
    vae = ended_run(FrequencyCompensatedVAE.from_base(BASE), "base")
    with pytest.raises(BadInput, match="is no tokenizer: leave --unquantised out"):
        export(vae, "small", "--unquantised", plain)
    for words, sentence in (
        ("--clips=0", "--clips is 0 but must be at least 1"),
        ("--size=20", "height 20: "),
    ):
        monkeypatch.setattr(sys, "argv", ["export_base", run, "small", words])
        with pytest.raises(BadInput, match=sentence):
            main()
    (Path(vae) / "log.jsonl").unlink()
    with pytest.raises(BadInput, match=r"^runs/base/vae has no log\.jsonl: give a run of stage 1"):
        export(vae, "small")
    assert not list(Path().glob("small*"))
    with pytest.raises(BadInput, match=r"name its vae\.weights"):
        trained_tokenizer(load_config("endogen_phantom", ["vae.path=base", "vae.base=phantom"]))


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("runs/a/vae", "runs/a/vae"),
        ("/elsewhere/of/mine/runs/a/vae", "runs/a/vae"),
        ("../../x/configs/phantom_base", "configs/phantom_base"),
        ("--unquantised=/mine/runs/b", "--unquantised=runs/b"),
        ("/mine/clips", "clips"),
        ("--size", "--size"),
        ("64", "64"),
    ],
)
def test_a_command_is_shown_as_from_the_top_of_the_repository(argument: str, shown: str) -> None:
    assert documented_command("medsora.data", [argument]) == f"python -m medsora.data {shown}"
    if argument == "runs/a/vae":
        assert documented_command("medsora.data", [str(Path(argument).absolute())]).endswith(f" {shown}")
