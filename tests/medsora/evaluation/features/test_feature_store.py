"""medsora.evaluation.features.feature_store: what a full disk and damage do to an extraction."""

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
    left = store.left()
    for numbers in (left[first : first + 4] for first in range(0, len(left), 4)):
        store.write(numbers, np.array(numbers))
    store.finish()
    return store


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = extract(tmp_path, 16)
    assert store.is_complete()
    assert np.array_equal(store.read().per_clip(), np.arange(16.0)[:, None].repeat(1024, 1))


def begun(folder: Path, clips: int, done: int) -> FeatureStore:
    """Return a store whose extraction ended after `done` clips."""
    store = FeatureStore(folder, "digest", Numbers(), clips, 16)
    store.begin()
    store.write(list(range(done)), np.arange(done))
    store._held.close()
    return store


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["partial", "done"])
def test_damage_between_a_kill_and_the_resume_is_extracted_again(tmp_path: Path, kind: str) -> None:
    straight = extract(tmp_path / "straight", 16).path.read_bytes()
    for clip in range(12):
        store = begun(tmp_path / str(clip), 16, 12)
        flip(*{"partial": (store._partial, -4096 * (16 - clip) + 5), "done": (store._done, 4 * clip)}[kind])
        assert FeatureStore(store.path.parent, "digest", Numbers(), 16, 16).left() == [clip, 12, 13, 14, 15]
        resumed = FeatureStore(store.path.parent, "digest", Numbers(), 16, 16)
        resumed.begin()
        resumed.write(left := resumed.left(), np.array(left))
        resumed.finish()
        assert resumed.path.read_bytes() == straight


def test_damage_while_features_are_extracted_is_not_sealed(tmp_path: Path) -> None:
    store = begun(tmp_path, 4, 4)
    flip(store._partial, -1)
    with pytest.raises(BadInput, match=r"the features of 1 of 4 clips .* run the same command again"):
        store.finish()
    assert not store.is_complete()
    assert extract(tmp_path, 4).is_complete()


def test_an_extraction_that_an_earlier_version_began_is_resumed(tmp_path: Path) -> None:
    """It kept a byte per clip, and no checksums."""
    store = begun(tmp_path, 16, 5)
    store._done.write_bytes(bytes([1] * 5 + [0] * 11))
    again = FeatureStore(tmp_path, "digest", Numbers(), 16, 16)
    again.begin()
    assert again.left() == list(range(5, 16))
    again._held.close()
    assert np.array_equal(extract(tmp_path, 16).read().per_clip()[:, 0], np.arange(16.0))


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
