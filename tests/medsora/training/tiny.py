"""The smallest thing that both training loops can train: a few phantom clips at 32x32, a VAE, a denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from medsora.config import Config
from medsora.config_file import config_from_dict
from medsora.data.phantom import write_phantom
from medsora.training.run_folder import read_log
from vae import FrequencyCompensatedVAE

VIDEOS, FRAMES, SIZE = 5, 17, 32
BASE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
DENOISER = {"width": 32, "depth": 2, "heads": 2, "d_state": 16, "headdim": 16}


def write_clips(folder: Path) -> Path:
    """Render the clips, unless they are there."""
    write_phantom(folder, VIDEOS, FRAMES, SIZE, seed=0)
    return folder


def write_vae(folder: Path, seed: int = 0, **base: Any) -> Path:
    """Save an untrained VAE whose compensation does something, as stage 1 would leave one."""
    torch.manual_seed(seed)
    vae = FrequencyCompensatedVAE.from_base(BASE | base)
    with torch.no_grad():
        for parameter in vae.compensation_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    vae.save_pretrained(folder)
    return folder


def tiny_config(work: Path, clips: Path, **changes: Any) -> Config:
    """Return a config of both stages that writes below `work`; `changes` name keys as section__key=value."""
    work.mkdir(parents=True, exist_ok=True)
    base = work / "base.json"
    base.write_text(json.dumps(BASE), encoding="utf-8")
    every = {"log_every": 1, "eval_every": 2, "save_every": 2, "eval_clips": 1, "max_steps": 5}
    values = {
        "run": {"name": "tiny", "dir": str(work / "runs")},
        "data": {
            "root": str(clips),
            "frames": 16,
            "size": SIZE,
            "interval": 1,
            "holdout": 0.2,
            "workers": 0,
        },
        "vae": {"base": str(base)},
        "images": {"count": 2, "encoding": "single"},
        "denoiser": {"preset": "tiny", "overrides": dict(DENOISER)},
        "flow": {"estimator": "dis"},
        "dino": {"model": "vit_tiny_patch16_224", "weights": "random"},
        "train_vae": {**every, "lr": 1e-3, "lpips": 0, "batch": 2},
        "train_dit": {
            **every,
            "phases": [{"lr": 1e-3, "batch": 2}],
            "clip_from_epoch": 0,
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


def forget_processes() -> None:
    """Let the next `Accelerator` of this process have another precision."""
    AcceleratorState._reset_state(reset_partial_state=True)


def figures(run: Path) -> list[dict[str, Any]]:
    """Return what a run logged, without what differs from machine to machine."""
    return [
        {key: value for key, value in line.items() if not key.startswith("speed/")} for line in read_log(run)
    ]
