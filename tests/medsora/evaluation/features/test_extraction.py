"""medsora.evaluation.features.extraction: processes that share the features of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from medsora.evaluation.features.extraction import extract
from tests.medsora.evaluation.features.test_feature_store import Numbers


class Clips:
    """Two clips, which are their numbers."""

    frames = 16

    def __len__(self) -> int:
        return 2

    def digest(self) -> str:
        return "digest"

    def read_ahead(self, indices: list[int], batch_size: int) -> list[tuple[list[int], np.ndarray]]:
        return [(indices, np.array(indices))]


class Ahead:
    """The state of a process while the main one is ahead: at the last barrier it removes the folder."""

    is_main_process, num_processes, process_index = True, 1, 0

    def __init__(self, folder: Path) -> None:
        self.folder, self.barriers = folder, 0

    def wait_for_everyone(self) -> None:
        self.barriers += 1
        if self.barriers == 2:
            shutil.rmtree(self.folder)


def test_features_are_read_before_another_process_may_remove_them(tmp_path: Path) -> None:
    state = Ahead(tmp_path / "features")
    found = extract(Clips(), {"numbers": Numbers()}, state.folder, state)
    assert state.barriers == 2
    assert np.array_equal(found["numbers"].per_clip()[:, 0], [0, 1])
