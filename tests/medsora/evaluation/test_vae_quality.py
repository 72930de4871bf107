"""`--vae`: per clip and on average, with the compensation and without, and the sheet of worst and best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from medsora.errors import BadInput
from medsora.evaluation.vae_quality import VaeSettings, evaluate_vae, markdown, spectrum
from medsora.vae import VQTokenizer
from medsora.vae.compensation import compensation_modules
from tests.support import tiny_training as tiny
from tests.support.drifting_clips import write_clips
from tests.support.tiny_pipeline import VAE, tiny_vae


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 run whose compensation does something."""
    vae = tiny_vae()
    with torch.no_grad():
        for _, module in compensation_modules(vae):
            for parameter in module.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    vae.save_pretrained(folder / "vae" / "final")
    return folder


def test_base_and_compensated_per_clip_and_mean(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-cache"))
    clips = write_clips(tmp_path / "real", range(3), size=16)
    results = evaluate_vae(VaeSettings(run_folder, clips, frames=8, size=16, out="out"))
    assert results is not None
    assert [clip["name"] for clip in results["clips"]] == [f"clip-{n}.mkv@0" for n in range(3)]
    for name in ("compensated", "base"):
        mean = results["mean"][name]
        assert set(mean) == {"psnr", "ssim", "ffl", "flicker", "sharpness"}
        assert mean["psnr"] == pytest.approx(np.mean([clip[name]["psnr"] for clip in results["clips"]]))
    assert results["mean"]["base"] != results["mean"]["compensated"]
    assert results["protocol"]["lpips"].startswith("left out")
    assert len(results["vae_sha256"]) == 64
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert (tmp_path / "out" / "results.md").read_text() == markdown(results)
    assert (tmp_path / "out" / "worst-and-best.png").is_file()


@pytest.mark.parametrize("named", ["pipeline", "pipeline/vae"])
def test_a_plain_base_of_diffusers_is_measured(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `vae.path` takes, `--vae` takes: a base has no compensation to compare with."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-cache"))
    AutoencoderKLCogVideoX(**VAE).save_pretrained(tmp_path / "pipeline" / "vae")
    clips = write_clips(tmp_path / "real", range(2), size=16)
    settings = VaeSettings(tmp_path / named, clips, frames=8, size=16, out=tmp_path / "out")
    assert set(evaluate_vae(settings)["mean"]) == {"base"}


def test_a_base_without_safetensors_is_refused(tmp_path: Path) -> None:
    AutoencoderKLCogVideoX(**VAE).save_pretrained(tmp_path / "base", safe_serialization=False)
    clips = write_clips(tmp_path / "real", range(2), size=16)
    with pytest.raises(BadInput, match="only safetensors are read"):
        evaluate_vae(VaeSettings(tmp_path / "base", clips, frames=8, size=16, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"size": 0}, "both sides must be at least 1 pixel"),
        ({"frames": 0}, "frames must be at least 1, not 0"),
        ({"clips": 0}, "clips must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_settings_that_are_not_possible(setting: dict, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        VaeSettings("vae", "real", **setting)


def test_lengths_that_change_are_refused(run_folder: Path, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "real", range(2), size=16)
    with pytest.raises(BadInput, match="1 and 8"):
        evaluate_vae(VaeSettings(run_folder, clips, frames=6, size=16, out=tmp_path / "out"))


def test_a_tokenizer_is_measured_at_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-cache"))
    VQTokenizer.from_base(tiny.TOKENIZER["vae__base"]).save_pretrained(tmp_path / "run" / "final")
    clips = write_clips(tmp_path / "real", range(2), size=16)
    results = evaluate_vae(VaeSettings(tmp_path / "run", clips, frames=6, size=16, out=tmp_path / "out"))
    assert set(results["mean"]) == {"tokenizer"}
    assert {"psnr", "ssim"} <= set(results["mean"]["tokenizer"])


def test_spectrum_has_its_mean_in_the_middle() -> None:
    shown = spectrum(np.full((1, 16, 16, 3), 200, np.uint8))
    assert shown.shape == (1, 16, 16, 3)
    assert shown[0, 8, 8, 0] == shown.max() > 150
    assert np.delete(shown[0, :, :, 0].ravel(), 8 * 16 + 8).max() == 0
