"""medsora.evaluation.features.feature_store: on a full disk, an extraction ends with a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from medsora.errors import BadInput
from medsora.evaluation.features.feature_store import Extractor, FeatureStore
from tests.support.disk.failing_reads import failing_reads
from tests.support.disk.small_disk import mount_small_disk

NO_MOUNT, SENTENCE = 77, 3


class Numbers(Extractor):
    """A clip's number, in a page of memory."""

    identity = {"name": "numbers"}  # noqa: RUF012
    width = 1024

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.asarray(clips, np.float32).reshape(-1, 1, 1), (len(clips), 1, self.width))


def extract(folder: Path, clips: int) -> FeatureStore:
    store = FeatureStore(folder, "digest", Numbers(), clips, 16)
    store.begin()
    for first in store.left()[::4]:
        numbers = list(range(first, first + 4))
        store.write(numbers, np.array(numbers))
    store.finish()
    return store


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = extract(tmp_path, 16)
    assert store.is_complete()
    assert np.array_equal(store.read().per_clip(), np.arange(16.0)[:, None].repeat(1024, 1))


def test_features_that_cannot_be_read_now_are_not_extracted_again(tmp_path: Path) -> None:
    store = extract(tmp_path, 16)
    with failing_reads(tmp_path, errno.ESTALE, 1, 1) as reads:
        assert store.is_complete()
    assert reads.count > 1
    with failing_reads(tmp_path, errno.ESTALE, 1, 1000), pytest.raises(BadInput, match="it may be intact"):
        store.is_complete()


def test_a_full_disk_ends_in_a_sentence(tmp_path: Path) -> None:
    """And not in SIGBUS, as writing through a map of the file does."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mount_small_disk(tmp_path, 2**20)
            extract(tmp_path / "features", 2048)
        except OSError as error:
            status = SENTENCE if "cannot be written (No space left on device)" in str(error) else NO_MOUNT
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == NO_MOUNT:
        pytest.skip("this system lets no user mount a disk")
    assert status == SENTENCE
