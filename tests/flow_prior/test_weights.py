"""medsora.flow_prior.weights: what is read is what was written."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsora.flow_prior.weights import MAX_TENSORS, read_weights, save_weights

STATE = {
    "weight": torch.arange(6.0).half().view(2, 3),
    "scale": torch.tensor(2.0),
    "empty": torch.zeros(0, 4),
}


def test_every_flipped_bit_of_the_tensors_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(STATE, path)
    found, content = read_weights(path), path.read_bytes()
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    for bit in range(8 * (12 + 4)):  # the values lie at the end
        flipped = bytearray(content)
        flipped[-1 - bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="do not match their checksum"):
            read_weights(path)


def test_files_without_a_digest_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    assert read_weights(tmp_path / "weights.safetensors").keys() == STATE.keys()


def test_a_file_of_more_tensors_than_any_network_has_is_refused(tmp_path: Path) -> None:
    """It is small, but each name costs time."""
    path, none = tmp_path / "weights.safetensors", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"blocks.{number}.x": none for number in range(MAX_TENSORS + 1)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"more than 20,000 tensors; give the weight file of one"):
        read_weights(path)
