"""The cache is never stale and never half."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from medsora.config.schema import PhaseConfig
from medsora.errors import BadInput
from medsora.runtime.digests import check_tensors
from medsora.training.batches import TimedBatches
from medsora.training.cache import store as tensor_store
from medsora.training.cache.store import TensorStore
from medsora.training.schedule import SampleKey, Schedule, StepBatches
from tests.support.disk.failing_reads import failing_reads


def test_entries_come_back_and_depend_on_the_key(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "latents", {"vae": "a"})
    store.put("clip-1", {"mean": torch.arange(4.0)})
    assert torch.equal(store.get("clip-1")["mean"], torch.arange(4.0))
    assert TensorStore(tmp_path, "latents", {"vae": "a"}).missing(["clip-1", "clip-2"]) == ["clip-2"]
    assert TensorStore(tmp_path, "latents", {"vae": "b"}).get("clip-1") is None


def test_a_cut_entry_and_one_of_another_key_are_absent(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "latents", {"vae": "a"})
    other = TensorStore(tmp_path, "latents", {"vae": "b"})
    other.put("clip-1", {"mean": torch.zeros(4)})
    stranger = next(other.folder.rglob("*.safetensors"))
    store.put("clip-1", {"mean": torch.zeros(4)})
    mine = next(store.folder.rglob("*.safetensors"))
    mine.write_bytes(stranger.read_bytes())
    assert store.get("clip-1") is None
    store.put("clip-1", {"mean": torch.zeros(4)})
    mine.write_bytes(mine.read_bytes()[:-3])
    assert store.get("clip-1") is None


def test_what_was_read_last_stays_in_memory_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_store, "KEPT_BYTES", 2 * 16)
    store = TensorStore(tmp_path, "latents", {"vae": "a"})
    for name in ("a", "b", "c"):
        store.put(name, {"mean": torch.full((4,), float(ord(name)))})
    assert store.get("a") is not None
    assert store.get("b") is not None
    store.get("a")
    assert store.get("c") is not None  # b, of those kept the one not asked for longest, makes room
    for file in store.folder.rglob("*.safetensors"):
        file.unlink()
    assert store.missing(["a", "b", "c"]) == ["a", "b", "c"]
    assert store.get("a")["mean"][0] == ord("a")
    assert store.get("c")["mean"][0] == ord("c")
    assert store.get("b") is None
    store.get("a")["mean"].fill_(7)  # what was handed out is the caller's own
    store.get("a")["mean"].share_memory_()  # as a loader's worker does with what it sends
    assert store.get("a")["mean"][0] == ord("a")
    assert not store.get("a")["mean"].is_shared()
    store.put("a", {"mean": torch.zeros(4)})
    assert torch.equal(store.get("a")["mean"], torch.zeros(4))


def test_every_flipped_bit_of_an_entry_is_found(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "latents", {"vae": "a"})
    tensors = {"mean": torch.randn(2, 3, 700), "videos": torch.tensor([3, 1])}
    store.put("clip-1", tensors)
    (path,) = store.folder.rglob("*.safetensors")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        found = TensorStore(tmp_path, "latents", {"vae": "a"}).get("clip-1")
        assert found is None or all(torch.equal(found[name], tensors[name]) for name in tensors)
    exchanged = bytearray(whole)
    exchanged[-8192:-4096], exchanged[-4096:] = whole[-4096:], whole[-8192:-4096]
    path.write_bytes(exchanged)
    assert store.missing(["clip-1"]) == ["clip-1"]


def test_a_digest_is_compared_once_and_again_after_the_file_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr(tensor_store, "KEPT_BYTES", 0)  # every read is one of the file
    monkeypatch.setattr(
        tensor_store, "check_tensors", lambda *file: compared.append(0) or check_tensors(*file)
    )
    there = TensorStore(tmp_path, "latents", {"vae": "a"})
    there.put("clip-1", {"mean": torch.ones(700)})
    compared.clear()
    for _ in range(3):
        assert torch.equal(there.get("clip-1")["mean"], torch.ones(700))
    assert len(compared) == 1
    (path,) = there.folder.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # a clock may be coarse
    assert there.get("clip-1") is None


def test_an_entry_of_an_earlier_version_without_a_digest_is_read(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "latents", {"vae": "a"})
    path = store._path("clip-1")
    path.parent.mkdir()
    save_file({"mean": torch.ones(3)}, path, metadata={"key": store.key})
    assert torch.equal(store.get("clip-1")["mean"], torch.ones(3))


@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_an_entry_that_cannot_be_read_now_is_not_computed_again(error: int, tmp_path: Path) -> None:
    """A server that is away for a moment would cost all that was encoded."""
    store = TensorStore(tmp_path, "latents", {})
    store.put("a", {"x": torch.ones(3)})
    with failing_reads(tmp_path, error, 1, 1) as reads:
        assert store.missing(["a", "b"]) == ["b"]
    assert reads.count == 3
    with failing_reads(tmp_path, error, 1, 1000), pytest.raises(BadInput, match="it may be intact"):
        store.missing(["a"])


class Entries(Dataset):
    """A store that is read by a loader, each sample from the same entry."""

    def __init__(self, store: TensorStore) -> None:
        self.store = store

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        return self.store.require("clip-1")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_entry_that_goes_while_a_run_reads_it_is_one_sentence(workers: int, tmp_path: Path) -> None:
    schedule = Schedule([PhaseConfig(1e-3, 2)], 4, epochs=1, max_steps=None)
    entries = Entries(TensorStore(tmp_path, "latents", {}))
    gone = pytest.raises(BadInput, match=r"^the cache entry clip-1 in .* is gone or damaged; run the")
    with TimedBatches(entries, StepBatches(schedule, 0), workers) as batches, gone:
        batches.next()
