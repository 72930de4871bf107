"""SHA-256 digests of files and of contents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


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
