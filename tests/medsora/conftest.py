"""A denoiser small enough for a test, and the clips and the VAE that training runs in tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medsora.denoiser import MedSora
from tests.support import tiny_training as tiny
from tests.support.awake import awake

SMALL = {"in_channels": 4, "width": 32, "depth": 2, "heads": 2, "d_state": 8, "headdim": 16, "dropout": 0.0}


@pytest.fixture
def small_model() -> Callable[..., MedSora]:
    """`small_model(**overrides)`: a small denoiser whose zero-initialised weights are drawn instead, because
    a model that answers zero to everything passes too many tests."""

    def build(**overrides: Any) -> MedSora:
        torch.manual_seed(0)
        return awake(MedSora(**SMALL | overrides)).eval()

    return build


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five phantom clips of 17 frames at 32x32."""
    return tiny.write_clips(tmp_path_factory.getbasetemp() / "tiny-clips")


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE as stage 2 takes it."""
    return tiny.write_vae(tmp_path_factory.getbasetemp() / "tiny-vae")
