"""The smallest thing that both training loops can train: a few phantom clips at 32x32, a VAE, a denoiser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from medsora.config.load import config_from_dict
from medsora.config.schema import Config
from medsora.data.phantom import write_phantom
from medsora.training.run.folder import read_log
from medsora.training.run.report import RunReport
from medsora.training.stage1 import loop as vae_loop
from medsora.training.stage2 import build as dit_build
from medsora.training.stage2 import loop as dit_loop
from medsora.vae import FrequencyCompensatedVAE
from tests.support.awake import awake
from tests.support.paths import ROOT

VIDEOS, FRAMES, SIZE = 5, 17, 32
BASE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
DENOISER = {"width": 32, "depth": 2, "heads": 2, "d_state": 16, "headdim": 16}
TOKENIZER = {
    "vae__kind": "vq",
    "vae__base": str(ROOT / "tests/support/tiny_vq.json"),
    "train_vae__train": "all",
    "train_vae__revive_after": 1,
}
LOOPS: dict[str, ModuleType] = {"vae": vae_loop, "dit": dit_loop}


def write_clips(folder: Path) -> Path:
    """Render the clips, unless they are there."""
    write_phantom(folder, VIDEOS, FRAMES, SIZE, seed=0)
    return folder


def write_vae(folder: Path, seed: int = 0, **base: Any) -> Path:
    """Save an untrained VAE whose compensation does something, where stage 2 takes it from."""
    torch.manual_seed(seed)
    vae = FrequencyCompensatedVAE.from_base(BASE | base)
    _wake(vae)
    vae.save_pretrained(folder)
    return folder


def tiny_config(work: Path, clips: Path, **changes: Any) -> Config:
    """Return a config of both stages that writes below `work`; `changes` name keys as section__key=value."""
    base = clips.with_name("tiny-base.json")
    base.write_text(json.dumps(BASE), encoding="utf-8")
    every = {"log_every": 1, "eval_every": 2, "save_every": 2, "eval_clips": 1, "max_steps": 4}
    data = {"root": str(clips), "frames": 16, "size": SIZE, "interval": 1, "holdout": 0.2, "workers": 0}
    values = {
        "run": {"name": "tiny", "dir": str(work / "runs")},
        "data": data,
        "vae": {"base": str(base)},
        "images": {"count": 2, "encoding": "single"},
        "denoiser": {"preset": "tiny", "overrides": dict(DENOISER)},
        "flow": {"estimator": "dis"},
        "dino": {"model": "vit_tiny_patch16_224", "weights": "random"},
        "train_vae": {**every, "lr": 1e-3, "lpips": 0, "batch": 2},
        "train_dit": {
            **every,
            "phases": [{"lr": 1e-3, "batch": 2}],
            "clip_after_epoch": 0,
            "sample_every": 100,
            "sample_videos": 1,
            "sample_steps": 2,
        },
        "cache": {"dir": str(work / "cache"), "image_groups": 2},
        "tracking": {"trackers": []},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return config_from_dict(values, "the tiny config")


def train(stage: str, config: Config, *, pages: bool = False) -> Path:
    """Run stage "vae" or "dit"; return its run folder. `pages`, its reports, take longer than the rest."""
    with nullcontext() if pages else mock.patch.object(RunReport, "update"):
        if stage == "vae":
            vae_loop.train_vae(config)
            return config.vae_dir
        return dit_loop.train_dit(config)


def forget_precision() -> None:
    """Let the next `Accelerator` of this process have another precision than those before."""
    AcceleratorState._reset_state(reset_partial_state=True)


# What a run left behind


def log_lines(run: Path) -> list[dict[str, Any]]:
    """Return what a run logged, without what differs from machine to machine."""
    return [
        {key: value for key, value in line.items() if not key.startswith("speed/")} for line in read_log(run)
    ]


def saved_tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, models and optimiser, by file and name."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Equal to the last bit: weights, their average, the optimiser's and the other state, every metric."""
    ours, theirs = saved_tensors(one, step), saved_tensors(other, step)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    states = [
        (run / "checkpoints" / f"step-{step:07d}" / "state.json").read_text(encoding="utf-8")
        for run in (one, other)
    ]
    assert states[0] == states[1]
    assert log_lines(one) == log_lines(other)


# Gradients


@contextmanager
def first_gradients(stage: str) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the gradients that the optimiser's first step would take."""
    kept: dict[str, Tensor] = {}
    loop, clipped_norm = LOOPS[stage], LOOPS[stage].clipped_norm

    def keep(accelerator: Any, model: nn.Module, largest: float | None) -> Tensor:
        if not kept:
            kept.update((name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None)
        return clipped_norm(accelerator, model, largest)

    with mock.patch.object(loop, "clipped_norm", keep):
        yield kept


@contextmanager
def nothing_silent() -> Iterator[None]:
    """Draw what is zero-initialised: a model whose last layer is zero has hardly any gradients."""
    build_denoiser, from_base = dit_build.build_denoiser, FrequencyCompensatedVAE.from_base

    def waking(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda *arguments, **options: _wake(build(*arguments, **options))

    with (
        mock.patch.object(dit_build, "build_denoiser", waking(build_denoiser)),
        mock.patch.object(FrequencyCompensatedVAE, "from_base", waking(from_base)),
    ):
        yield


def _wake(model: nn.Module) -> nn.Module:
    return awake(model, 0.05, torch.Generator().manual_seed(0))
