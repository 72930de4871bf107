"""A tokenizer of pictures small enough for a test, a config that trains EndoGen on its codes, and a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from medsora.baselines.endogen import EndoGen
from medsora.config.schema import Config
from medsora.runtime.digests import weights_digest
from medsora.runtime.files import write_json
from medsora.saved.checkpoint import save_checkpoint
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
LABELS = ("bleeding", "polyp")
ENDOGEN = {"preset": "tiny", "dropout": 0.1}


def write_tokenizer(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    VQTokenizer.from_preset("phantom", **SIZES).save_pretrained(folder)
    return folder


def write_run(run: Path, steps: tuple[int, ...] = (2, 4), labels: Sequence[str] = LABELS) -> Path:
    """A run folder as training writes it, of 4 frames of 32x32 with labels; at step s the seed is s."""
    tokenizer = VQTokenizer.from_pretrained(write_tokenizer(run / "tokenizer"))
    clip = {"frames": 4, "size": [32, 32], "fps": 8, "interval": 3, "labels": list(labels)}
    write_json(run / "pipeline.json", {"_class_name": "EndoGenPipeline", **clip})

    def write_models(folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        model = EndoGen.from_preset("tiny", num_codes=32, rows=8, cols=8, classes=len(labels), depth=2)
        torch.nn.init.normal_(model.output.weight)
        model.save_pretrained(folder / "transformer")

    for step in steps:
        state, optimizer = {"tokenizer": weights_digest(tokenizer)}, {"w": torch.arange(4.0)}
        save_checkpoint(run / "checkpoints", step, partial(write_models, seed=step), optimizer, state, keep=9)
    return run


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
