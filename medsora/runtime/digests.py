"""SHA-256 digests of files and of contents; checksums inside JSON objects."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


SEAL = "crc32"  # the key of an object's checksum


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
