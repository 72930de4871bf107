"""The digest of a file is that of its bytes, however many there are; a checksum finds every changed bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from medsora.runtime.digests import (
    BLOCK_BYTES,
    Damaged,
    block_digest,
    check_tensors,
    parse_tensors,
    sealed,
    sealed_tensors,
    sha256,
    unsealed,
    weights_digest,
)


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_a_files_digest_is_that_of_its_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "missing")


def test_every_flipped_bit_of_a_sealed_object_is_found_or_changes_nothing() -> None:
    values = {
        "steps": 4,
        "loss": [0.1, 2e-5, None],
        "names": {"ä": "b", "1": (1, 2)},
        "nothing": float("inf"),
    }
    text, found = json.dumps(sealed(values)).encode(), []
    wanted = unsealed(json.loads(text))
    assert wanted == json.loads(json.dumps(values))
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = unsealed(json.loads(flipped))
            assert {key: read.get(key) for key in wanted} == wanted, "used silently"
        except Damaged as error:
            found.append(error)
        except (ValueError, TypeError):
            pass  # no JSON any more
    assert len(found) > len(text)
    assert unsealed({"steps": 4}) == {"steps": 4}, "of an earlier version"


def test_a_sealed_file_of_tensors_loads_and_every_flipped_bit_of_its_values_is_found() -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    file = sealed_tensors(safetensors.numpy.save(tensors), key="what it is")
    loaded = safetensors.numpy.load(file)
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)
    start, about, header = parse_tensors(content := np.frombuffer(file, np.uint8).copy())
    assert (about["key"], set(header)) == ("what it is", set(tensors))
    check_tensors(about, header, content[start:])
    check_tensors({}, header, content[start:])  # as earlier versions wrote it
    for bit in range(8 * start, 8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match="does not match its checksum"):
            check_tensors(about, header, content[start:])
        content[bit // 8] ^= 1 << bit % 8
    for no_such_file in (b"", b"short", file[: start - 9]):
        with pytest.raises(Damaged, match="no safetensors file"):
            parse_tensors(np.frombuffer(no_such_file, np.uint8))


def test_a_block_digest_depends_on_the_header_and_on_every_block_and_its_place() -> None:
    values = np.random.default_rng(0).integers(0, 256, 2 * BLOCK_BYTES + 24, dtype=np.uint8)
    first, second, rest = np.split(values, (BLOCK_BYTES, 2 * BLOCK_BYTES))
    others = [np.concatenate((second, first, rest)), values[:-8], np.zeros_like(values)]
    for place in (0, BLOCK_BYTES, len(values) - 1):
        others.append(values.copy())
        others[-1][place] ^= 1
    digests = [block_digest({"a": 1}, each) for each in (values, *others)] + [block_digest({"a": 2}, values)]
    assert len(set(digests)) == len(digests)
    assert digests[0] == block_digest({"a": 1}, values.copy())


def layer(name: str = "a", value: float = 1.0, **config: object) -> nn.Module:
    module = nn.Module()
    module.register_buffer(name, torch.full((2, 3), value))
    module.config = config
    return module


def test_a_digest_of_weights_depends_on_names_shapes_values_and_settings_alone() -> None:
    digest = weights_digest(layer(width=2))
    assert digest == weights_digest(layer(width=2, _name_or_path="elsewhere", compensation_kind="causal"))
    others = [layer("b", width=2), layer(value=1 + 2**-20, width=2), layer(width=3), layer()]
    others += [layer(width=2, compensation_kind="standard"), layer(width=2)]
    others[-1].a = others[-1].a.T.contiguous()
    assert digest not in map(weights_digest, others)
    assert len(set(map(weights_digest, others))) == len(others)
