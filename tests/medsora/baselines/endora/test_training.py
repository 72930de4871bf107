"""medsora.saved.classes, medsora.training.stage2.build: MedSora's commands train, resume, sample, export and
load Endora like MedSora.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsora import MedSoraPipeline
from medsora.baselines.endora import Endora
from medsora.config.load import save_config
from medsora.config.schema import STAGE_2, Config
from medsora.errors import BadInput
from medsora.project.export import export_run
from medsora.runtime.files import write_json
from medsora.sampling.run import SamplingSettings, sample_videos
from medsora.saved.find import read_json_object
from medsora.training.command_line import training_arguments
from medsora.training.dry_run.report import dry_run_denoiser
from medsora.training.fill_caches import fill_caches
from medsora.training.stage2.build import build_denoiser
from medsora.vae import PerFrameVAE
from tests.support import tiny_training as tiny

ENDORA = {
    "denoiser__preset": "endora-tiny",
    "denoiser__overrides": {"width": 32, "depth": 4, "heads": 2},
    "denoiser__prediction": "velocity",
}
PER_FRAME = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
}
CONDITIONS = {
    "data__frames": 9,
    "train_dit__first_frame_prob": 0.5,
    "cache__latents": "disk",
    "cache__prior": "disk",
    "denoiser__gradient_checkpointing": True,
}


def configure(work: Path, clips: Path, vae: Path, **changes: Any) -> Config:
    return tiny.tiny_config(work, clips, **{"vae__path": str(vae)} | ENDORA | changes)


@pytest.fixture
def config(clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return configure(Path(), clips, vae_folder)


@pytest.mark.parametrize("changes", [{}, CONDITIONS], ids=["plain", "conditions"])
def test_resumed_bit_for_bit_exported_and_loaded(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    straight = tiny.train("dit", configure(Path("straight"), clips, vae_folder, **changes))
    halves = [
        configure(Path("halves"), clips, vae_folder, train_dit__max_steps=steps, **changes)
        for steps in (2, 4)
    ]
    run = [tiny.train("dit", half) for half in halves][-1]
    tiny.assert_same_run(straight, run, 4)

    save_config(halves[-1], run / "config.yaml")
    card = export_run(run, tmp_path / "exported")
    assert (card.name, card.model) == ("Endora-tiny tiny", "Endora")
    exported, of_run = MedSoraPipeline.from_pretrained(tmp_path / "exported"), MedSoraPipeline.from_run(run)
    assert isinstance(exported.denoiser, Endora)
    first = np.full((1, 32, 32, 3), 90, np.uint8) if changes else None
    videos = [
        pipe(num_inference_steps=3, seeds=[5, 6], first_frames=first).frames for pipe in (exported, of_run)
    ]
    assert np.array_equal(*videos)
    assert not np.array_equal(*videos[0])


def test_alignment_reaches_every_spatial_block(config: Config) -> None:
    config.alignment.correlation, config.train_dit.max_steps = "batch", 1
    logged = {key for line in tiny.log_lines(tiny.train("dit", config)) for key in line}
    assert {key for key in logged if key.startswith("alignment/")} == {
        "alignment/block_00",
        "alignment/block_01",
    }


@pytest.mark.parametrize("preset", ["endora-tiny", "tiny"])
def test_either_denoiser_trains_and_samples_with_the_per_frame_vae(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "kl.json", PER_FRAME)
    changes = {"vae__kind": "per-frame", "vae__base": "kl.json", "vae__path": None, "data__frames": 6}
    given = {"train_dit__first_frame_prob": 0.5, "train_dit__given_frames": [2]}
    images = {"images__count": 3, "images__encoding": "packed"}
    overrides = ENDORA["denoiser__overrides"] if preset == "endora-tiny" else dict(tiny.DENOISER)
    model = {"denoiser__preset": preset, "denoiser__overrides": overrides}
    config = tiny.tiny_config(Path(), clips, **changes, **given, **images, **model, train_dit__max_steps=2)
    pipe = MedSoraPipeline.from_run(tiny.train("dit", config))
    assert isinstance(pipe.vae, PerFrameVAE)
    first = np.full((2, 32, 32, 3), 90, np.uint8)
    assert pipe(num_inference_steps=2, seeds=[1], first_frames=first).frames.shape == (1, 6, 32, 32, 3)
    film = pipe(num_inference_steps=1, seeds=[1], frames=11, window=6)
    assert film.frames.shape == (1, 11, 32, 32, 3)
    sample_videos(SamplingSettings(model=str(config.dit_dir), out=Path("out"), num_videos=1, steps=1))
    with pytest.raises(BadInput, match="stage 1 does not train"):
        tiny.train("vae", config)


def test_a_dry_run_and_the_caches_know_it(
    clips: Path,
    vae_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure(Path(), clips, vae_folder, cache__latents="disk", cache__prior="disk")
    monkeypatch.setattr("medsora.training.dry_run.report.USUAL_SIDES_PX", ())  # they take a minute
    dry_run_denoiser(config)
    fill_caches(config)
    printed = capsys.readouterr().out
    assert "ready" in printed.splitlines()
    assert "endora-tiny" in printed
    assert "filled:" in printed


def test_the_preset_is_named_on_the_command_line(config: Config, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    words = ["--config", "config.yaml", "--preset", "endora-B", "run.dir=runs"]
    named, _ = training_arguments("", STAGE_2, words)
    assert named.dit_dir == Path("runs/tiny/dit-endora-B")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"denoiser__mixing": "mixed"}, "preset endora-tiny has no setting denoiser.mixing"),
        ({"denoiser__backend": "torch"}, "no setting denoiser.backend"),
        ({"denoiser__overrides": {"layout": "woven"}}, "interlaced, separate"),
        ({"denoiser__overrides": {"window": 4}}, "no setting 'window'"),
        ({"denoiser__overrides": {"heads": 5}}, "divisible"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    clips: Path, vae_folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = configure(tmp_path, clips, vae_folder, **changes)
    with pytest.raises(BadInput, match=words):
        build_denoiser(config, 4)


def test_another_class_is_not_loaded(config: Config, tmp_path: Path) -> None:
    run = tiny.train("dit", config)
    save_config(config, run / "config.yaml")
    export_run(run, tmp_path / "out")
    described = tmp_path / "out" / "denoiser" / "config.json"
    write_json(described, read_json_object(described) | {"_class_name": "UNet2DModel"})
    with pytest.raises(BadInput, match="holds 'UNet2DModel', not a MedSora or Endora"):
        MedSoraPipeline.from_pretrained(tmp_path / "out")


def test_medsora_loads_without_its_baselines() -> None:
    program = (
        "import sys, medsora; medsora.MedSora; medsora.MedSoraPipeline\n"
        "assert not [name for name in sys.modules if name.startswith('medsora.baselines')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
