"""Saving and loading: the same model back, and one sentence for any other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsora.denoiser import MedSora
from medsora.errors import BadInput

FILE = "diffusion_pytorch_model.safetensors"


@torch.no_grad()
def test_a_saved_model_comes_back_with_its_settings_and_answers(small_model, tmp_path: Path) -> None:
    model = small_model(mixing="mixed")
    model.save_pretrained(tmp_path)
    z, t = torch.randn(1, 3, 4, 4, 4), torch.tensor([10])
    again = MedSora.from_pretrained(tmp_path).eval()
    assert again.config.mixing == "mixed"
    assert torch.equal(again(z, t, 1).eps, model(z, t, 1).eps)

    filled = MedSora.from_config(model.config).eval()
    filled.load_weights(tmp_path)
    filled.load_weights(tmp_path / FILE)
    assert torch.equal(filled(z, t, 1).eps, model(z, t, 1).eps)


@torch.no_grad()
def test_one_checkpoint_serves_several_sizes(small_model) -> None:
    model = small_model()
    names = model.state_dict().keys()
    for size in (2, 4, 8):
        model(torch.randn(1, 2, 4, size, size), torch.tensor([10]))
    assert model.state_dict().keys() == names == dict(model.named_parameters()).keys()


def test_an_s_checkpoint_is_refused_by_b(tmp_path: Path) -> None:
    thin = {"width": 32, "heads": 2, "d_state": 8, "headdim": 16, "in_channels": 4}
    MedSora.from_preset("S", **thin).save_pretrained(tmp_path)
    sentence = r"holds 6 blocks \(preset S\), but this model has 12 blocks \(preset B\): take the same preset"
    with pytest.raises(ValueError, match=sentence):
        MedSora.from_preset("B", **thin).load_weights(tmp_path)


def test_other_settings_are_refused_with_the_first_difference(small_model, tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds blocks\.0\.spatial.* of size .* but this model needs"):
        small_model(d_state=16).load_weights(tmp_path)

    weights = load_file(tmp_path / FILE)
    del weights["final.linear.bias"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"lacks final\.linear\.bias"):
        model.load_weights(tmp_path / "less.safetensors")

    weights = load_file(tmp_path / FILE) | {"stray": torch.zeros(1)}
    save_file(weights, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="holds stray"):
        model.load_weights(tmp_path / "more.safetensors")


def test_missing_and_damaged_files_are_named(small_model, tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        model.load_weights(tmp_path / "absent.safetensors")
    model.save_pretrained(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        model.load_weights(tmp_path)


def test_from_pretrained_is_strict(small_model, tmp_path: Path) -> None:
    small_model(depth=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depth": 2}))
    with pytest.raises(ValueError, match="do not fit the config beside them"):
        MedSora.from_pretrained(tmp_path)


@torch.no_grad()
def test_rows_of_labels_are_matched_by_name(
    small_model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model(classes=2)
    model.labels.weight.copy_(torch.arange(3.0)[:, None].expand_as(model.labels.weight))
    model.save_pretrained(tmp_path)
    other = small_model(classes=3)
    other.load_weights(tmp_path, (["adenoma", "polyp"], ["polyp", "sessile", "adenoma"]))
    assert other.labels.weight[:, 0].tolist() == [1, 2, 0, 2]  # a new label starts from the row for none
    assert "labels adenoma, polyp; each of sessile starts from its row for no label" in caplog.text
    with pytest.raises(BadInput, match=r"holds labels\.weight of size \(3, "):
        other.load_weights(tmp_path, (["adenoma"], ["polyp", "sessile", "adenoma"]))
