"""medsora.saved.find, medsora.saved.limits: what a VAE and a run of stage 2 may be called by; the frame rate
that a model stores.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from medsora.config.load import config_from_dict
from medsora.errors import BadInput
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import (
    find_in_run,
    find_model,
    find_vae,
    load_tokenizer,
    load_vae,
    stage_2_folder,
    trained_labels,
    trained_tokenizer,
    trained_vae,
)
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer
from medsora.vae.compensation import compensation_modules
from tests.support import tiny_training as tiny
from tests.support.tiny_pipeline import GEOMETRY, write_run


def write_class(folder: Path, name: str = "FrequencyCompensatedVAE") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": name}))
    return folder


def test_what_a_vae_may_be_called(tmp_path: Path) -> None:
    final = write_class(tmp_path / "run" / "vae" / "final")
    assert find_vae(tmp_path / "run") == find_vae(tmp_path / "run" / "vae") == find_vae(final) == final
    beside_denoiser = write_class(tmp_path / "run" / "dit-tiny" / "vae")
    assert find_vae(tmp_path / "run" / "dit-tiny") == beside_denoiser


def test_a_tokenizer_may_be_named_by_its_published_file(tmp_path: Path) -> None:
    torch.save({"model": {"quant_conv.weight": torch.zeros(8, 256, 1, 1)}}, tmp_path / "vq.pt")
    with pytest.raises(BadInput, match=r"vq\.pt lacks decoder\.conv_blocks.* give LlamaGen's whole"):
        load_tokenizer(tmp_path / "vq.pt", "train one")
    whole = VQTokenizer.from_preset("phantom", block_out_channels=[8, 8, 8, 8])
    with patch("medsora.saved.find.read_published_tokenizer", lambda path: whole):
        assert load_tokenizer(tmp_path / "vq.pt", "train one") is whole
    assert not any(parameter.requires_grad for parameter in whole.parameters())


def test_no_vae_and_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no trained VAE in .*; train one\."):
        find_vae(tmp_path, "train one")
    write_class(tmp_path, "AutoencoderKL")
    with pytest.raises(BadInput, match="holds 'AutoencoderKL', not a FrequencyCompensatedVAE"):
        find_vae(tmp_path)


@pytest.mark.parametrize("compensation", [True, False])
def test_stage_2_may_use_a_base_that_diffusers_saved(compensation: bool, tmp_path: Path) -> None:
    """In its own folder or a pipeline's; it encodes as the base does, with the same weights each time."""
    torch.manual_seed(3)
    plain = AutoencoderKLCogVideoX(**tiny.BASE).eval()
    plain.save_pretrained(tmp_path / "pipeline" / "vae")

    def loaded(folder: str, seed: int) -> FrequencyCompensatedVAE:
        config = {"path": str(tmp_path / folder), "compensation": compensation}
        torch.manual_seed(seed)
        return trained_vae(config_from_dict({"vae": config, "run": {"seed": seed}}, "a test"))

    vae, again = loaded("pipeline", 1), loaded("pipeline/vae", 2)
    assert any(True for _ in compensation_modules(vae)) == compensation
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    states = vae.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    video = torch.rand(1, 8, 3, 16, 16)
    with torch.no_grad():
        mean = plain.encode(video.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
        assert torch.equal(vae.encode_moments(video)[0], mean)
        assert torch.equal(vae.encode(video), mean * plain.config.scaling_factor)


def test_stage_2_may_use_the_configs_own_base_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word the base's weights, with or without a compensation, which is untrained."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    kept = FrequencyCompensatedVAE.from_base(tiny.BASE)
    kept.save_base("base.json", "base.safetensors", torch.float32)
    values = {"path": "base", "base": "base.json", "weights": "base.safetensors"}
    for compensation in (True, False):
        vae = trained_vae(config_from_dict({"vae": values | {"compensation": compensation}}, "a test"))
        assert any(True for _ in compensation_modules(vae)) == compensation
        ours, theirs = vae.base_state_dict(), kept.base_state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(BadInput, match="no such weights file"):
        trained_vae(config_from_dict({"vae": values | {"weights": "gone.safetensors"}}, "a test"))
    write_class(tmp_path / "base", "AutoencoderKL")
    with pytest.raises(BadInput, match="base holds 'AutoencoderKL'"):
        trained_vae(config_from_dict({"vae": values}, "a test"))


def test_the_only_stage_2_run_inside_is_meant(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no run folder of stage 2"):
        stage_2_folder(tmp_path)
    for preset in ("B", "S"):
        (tmp_path / f"dit-{preset}").mkdir()
    (tmp_path / "dit-S" / "pipeline.json").write_text("{}")
    assert stage_2_folder(tmp_path) == stage_2_folder(tmp_path / "dit-S") == tmp_path / "dit-S"
    (tmp_path / "dit-B" / "pipeline.json").write_text("{}")
    with pytest.raises(BadInput, match=r"did you mean .*dit-B or .*dit-S\?"):
        stage_2_folder(tmp_path)


@pytest.mark.parametrize("inside", ["", "final", "checkpoints/step-0000004"])
def test_a_folder_of_stage_1_is_named_and_the_one_meant(tmp_path: Path, inside: str) -> None:
    vae = tmp_path / "vae"
    (vae / "checkpoints" / "step-0000004" / "vae").mkdir(parents=True)
    given = vae / inside
    for ended in (False, True) if inside != "final" else (True,):
        if ended:
            write_class(vae / "final", "FrequencyCompensatedVAE")
        with pytest.raises(BadInput, match=r"is of stage 1, the VAE; .* folder of stage 2: train that first"):
            find_model(given)
    run = write_run(tmp_path / "dit-S", steps=(5,))
    with pytest.raises(BadInput, match=f"folder of stage 2: {run}."):
        find_model(given)
    assert find_model(run).step == find_model(run / "checkpoints" / "step-0000005").step == 5


def test_the_rate_of_the_training_data_is_kept_where_it_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(5,))
    assert "rate" not in find_in_run(run).geometry  # as earlier versions wrote it
    (run / "pipeline.json").write_text(json.dumps(GEOMETRY | {"fps": 12.5, "rate": 12.5}))
    pipeline = MedSoraPipeline.from_run(run)
    pipeline.save_pretrained(tmp_path / "saved")
    again = MedSoraPipeline.from_pretrained(tmp_path / "saved")
    assert (again.config.rate, again.config.fps) == (12.5, 12.5)
    for wrong in (0, -1, "8", True, 1e9):
        (run / "pipeline.json").write_text(json.dumps(GEOMETRY | {"rate": wrong}))
        with pytest.raises(BadInput, match="rate"):
            find_in_run(run)


def test_a_saved_vae_tokenizer_and_plain_base_load_as_what_they_are(tmp_path: Path) -> None:
    config = {"vae": {"kind": "vq", "path": str(tmp_path / "tokenizer")}}
    saved = {
        "vae": FrequencyCompensatedVAE.from_base(tiny.BASE),
        "tokenizer": VQTokenizer.from_preset("phantom", block_out_channels=[8, 8, 8, 8]),
    }
    for name, model in saved.items():
        model.save_pretrained(tmp_path / name)
    loaded = {name: load_vae(tmp_path / name) for name in saved}
    saved["trained tokenizer"] = saved["tokenizer"]
    loaded["trained tokenizer"] = trained_tokenizer(config_from_dict(config, "a test"))
    for name, model in saved.items():
        assert type(loaded[name]) is type(model)
        ours, theirs = loaded[name].state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    AutoencoderKLCogVideoX(**tiny.BASE).save_pretrained(tmp_path / "plain")
    assert not list(compensation_modules(load_vae(tmp_path / "plain")))
    with pytest.raises(BadInput, match="set vq"):
        trained_tokenizer(config_from_dict({}, "a test"))


def test_the_labels_of_a_run_are_those_of_its_checkpoints(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(5,))
    assert trained_labels(run) == ()
    (run / "pipeline.json").write_text(json.dumps(GEOMETRY | {"labels": ["polyp", "blood"]}))
    assert trained_labels(run) == ("polyp", "blood")
    (run / "checkpoints").rename(run / "none")
    assert trained_labels(run) == ()


def test_the_digests_of_a_model_are_those_of_whole_weights(tmp_path: Path) -> None:
    found = find_model(write_run(tmp_path / "run", steps=(5,)))
    assert len(set(found.digests().values())) == 2
    weights = found.vae / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"vae.*is not a complete safetensors file"):
        found.digests()
    weights.unlink()
    with pytest.raises(BadInput, match=r"vae.*is missing"):
        found.digests()
