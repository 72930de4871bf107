"""What every test shares: the folder of real data, one thread per worker."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from tests.support.paths import ROOT

torch.set_num_threads(1)
cv2.setNumThreads(1)

SHARED_DATA = ROOT / ".." / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def endoscopy_folder() -> Path:
    """The folder of real endoscopic sequences; the test skips where it is not at hand."""
    folder = SHARED_DATA / "endoscopy"
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}")
    return folder


@pytest.fixture(scope="session")
def raft_small_weights() -> Path:
    """RAFT-small's published weights (princeton-vl's key names); the test skips where they are absent."""
    path = SHARED_DATA / "weights" / "raft-small.pth"
    if not path.is_file():
        pytest.skip(f"no RAFT-small weights at {path}")
    return path
