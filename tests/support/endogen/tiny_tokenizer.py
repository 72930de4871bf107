"""A tokenizer of pictures small enough for a test, and a config that trains EndoGen on its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import ModelMixin, VQModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

import medsora.vae
from medsora.config.schema import Config
from medsora.runtime.digests import weights_digest
from medsora.training.ar import loop
from medsora.training.run.report import RunReport
from tests.support import tiny_training as tiny

SIZES = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
ENDOGEN = {"preset": "tiny", "dropout": 0.1}


class VQTokenizer(ModelMixin, ConfigMixin):
    """`diffusers.VQModel` with 8 pixels per code and 32 codes."""

    downsampling, num_codes = 8, 32

    @register_to_config
    def __init__(self, codes: int = 32) -> None:
        super().__init__()
        self.base = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            num_vq_embeddings=codes,
            latent_channels=4,
            **SIZES,
        )

    @property
    def digest(self) -> str:
        return weights_digest(self)

    def encode(self, pictures: Tensor) -> Tensor:
        latents = self.base.encode(pictures).latents
        numbers = self.base.quantize(latents)[2][2]
        return numbers.view(len(pictures), *latents.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        shape = (*codes.shape, self.base.config.latent_channels)
        entries = self.base.quantize.get_codebook_entry(codes.flatten(), shape)
        return self.base.decode(entries, force_not_quantize=True).sample


def write_tokenizer(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = VQTokenizer()
    torch.nn.init.normal_(tokenizer.base.quantize.embedding.weight)
    tokenizer.save_pretrained(folder)
    return folder


def known_tokenizer() -> Any:
    return mock.patch.dict(medsora.vae._HOMES, VQTokenizer="tests.support.endogen.tiny_tokenizer")


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
