"""The cache is never stale and never half."""

from __future__ import annotations

from pathlib import Path

import torch

from medsora.training.tensor_store import TensorStore


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
