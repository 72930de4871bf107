"""A tokenizer of pictures small enough for a test, and a config that trains EndoGen on its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch

from medsora.config.schema import Config
from medsora.training.ar import loop
from medsora.training.run.report import RunReport
from medsora.vae import VQTokenizer
from tests.support import tiny_training as tiny

SIZES = {
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "num_vq_embeddings": 32,
}
ENDOGEN = {"preset": "tiny", "dropout": 0.1}


def write_tokenizer(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    VQTokenizer.from_preset("phantom", **SIZES).save_pretrained(folder)
    return folder


def configure(work: Path, clips: Path, tokenizer: Path, **changes: Any) -> Config:
    """A config of EndoGen on 4 frames of 32x32: 8x8 codes."""
    training = {"max_steps": 4, "batch": 2, "lr": 1e-3, "log_every": 1, "eval_every": 2, "save_every": 2}
    values = {
        "data__frames": 4,
        "data__flip": False,
        "data__labels": "labels.csv",
        "data__balance": True,
        "vae__kind": "vq",
        "vae__path": str(tokenizer),
        **{f"endogen__{key}": value for key, value in ENDOGEN.items()},
        **{f"train_ar__{key}": value for key, value in training.items()},
        "train_ar__eval_clips": 2,
        "train_ar__sample_videos": 1,
    }
    return tiny.tiny_config(work, clips, **values | changes)


def train(config: Config) -> Path:
    with mock.patch.object(RunReport, "update"):
        return loop.train_ar(config)
