"""SHA-256 digests of files and of contents; checksums inside JSON objects and files of tensors."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn


SEAL = "crc32"  # the key of an object's checksum
BLOCK_BYTES = 4096


class Damaged(ValueError):
    """The content read differs from the content written."""


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum of the rest, which `unsealed` compares."""
    return {**values, SEAL: _checksum(json.loads(json.dumps(values)))}


def unsealed(values: Any) -> dict[str, Any]:
    """Return a JSON object without its checksum, which those of earlier versions do not have.

    Raises `Damaged` if the rest does not match the checksum, `TypeError` or `ValueError` for no object.
    """
    rest = dict(values)
    wanted = rest.pop(SEAL, None)
    if wanted is not None and wanted != _checksum(rest):
        raise Damaged("it does not match its checksum")
    return rest


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def sealed_tensors(content: bytes, **about: str) -> bytes:
    """Return a safetensors file with `about` and the digest that `check_tensors` compares in its header."""
    start, _, header = parse_tensors(values := np.frombuffer(content, np.uint8))
    about["digest"] = block_digest(header, values[start:])
    # written here, because safetensors itself writes the metadata in random order
    head = json.dumps({"__metadata__": about} | header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + content[start:]


def parse_tensors(content: np.ndarray) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the offset of a safetensors file's values, its metadata, and its tensors' headers by name.

    Raises `Damaged` if `content`, uint8 (bytes,), is no such file.
    """
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length].tobytes())
        about = header.pop("__metadata__", None) or {}
        return 8 + length, dict(about), header
    except (ValueError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise Damaged("it is no safetensors file") from error


def check_tensors(about: Mapping[str, str], header: dict[str, Any], values: np.ndarray) -> None:
    """Raise `Damaged` if a file's values do not match the digest in its metadata, which old files lack."""
    if about.get("digest") not in (None, block_digest(header, values)):
        raise Damaged("it does not match its checksum")


def block_digest(header: dict[str, Any], values: np.ndarray) -> str:
    """Return a SHA-256 over a header and the sums, modulo 2^64, of every 4 KiB of `values` (bytes,).

    It costs little beside reading them and finds what disks and copies do to a file (bits that flip, parts
    that are zero, cut or elsewhere), but not what somebody changes with care.
    """
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    whole = len(values) // BLOCK_BYTES * BLOCK_BYTES
    blocks = values[:whole].view(np.uint64).reshape(-1, BLOCK_BYTES // 8)
    digest.update(blocks.sum(1).tobytes())
    digest.update(values[whole:].tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over a model's parameters and buffers, names included, wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    if config := getattr(model, "config", None):
        settings = {key: value for key, value in config.items() if not key.startswith("_")}  # not its path
        if settings.get("compensation_kind") == "causal":
            del settings["compensation_kind"]  # as all models were before they named it: their digests stay
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()
