"""Clips and a VAE that the tests of the training loops share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_training as tiny


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five phantom clips of 17 frames at 32x32."""
    return tiny.write_clips(tmp_path_factory.getbasetemp() / "tiny-clips")


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE as stage 2 takes it."""
    return tiny.write_vae(tmp_path_factory.getbasetemp() / "tiny-vae")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the check of a folder is remembered in runs/cache
