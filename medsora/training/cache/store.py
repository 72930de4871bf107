"""Tensors kept on disk under a key that hashes everything they depend on: never stale, never half a file.

One safetensors file per entry, written beside and renamed, with the key in its header; whatever is missing,
cut or under another key reads as absent and is computed again. What was read last stays in memory, up to
`KEPT_BYTES` of each store in each process: a small store is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medsora.errors import BadInput
from medsora.runtime.files import write_json, written_beside

KEPT_BYTES = 2**26


class TensorStore:
    """A folder of named entries, each a dictionary of tensors."""

    def __init__(self, root: Path, kind: str, depends_on: dict[str, Any]) -> None:
        """`depends_on` is everything that the entries' values depend on, as JSON values."""
        text = json.dumps(depends_on, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = Path(root) / f"{kind}-{self.key[:16]}"
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._kept_bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "depends_on.json", depends_on)
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(
                f"the cache folder {self.folder} cannot be written ({reason}); set cache.dir."
            ) from error

    def get(self, name: str) -> dict[str, Tensor] | None:
        """Return an entry, or None if it is not there or not whole."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return _copied(self._kept[name])
        entry = self._read(name)
        if entry is not None:
            self._keep(name, _copied(entry))
        return entry

    def _read(self, name: str) -> dict[str, Tensor] | None:
        try:
            with safe_open(self._path(name), framework="pt") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    return None
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write an entry; several processes may write the same one."""
        path = self._path(name)
        self._forget(name)
        try:
            with written_beside(path) as beside:
                contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
                save_file(contiguous, beside, metadata={"key": self.key})
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"the cache entry {path} cannot be written: {error}; make room or set cache.dir."
            ) from error

    def missing(self, names: list[str]) -> list[str]:
        """Return those of `names` that are not there or not whole on the disk."""
        return [name for name in names if self._read(name) is None]

    def _keep(self, name: str, entry: dict[str, Tensor]) -> None:
        self._kept[name] = entry
        self._kept_bytes += _size(entry)
        while self._kept_bytes > KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, name: str) -> None:
        self._kept_bytes -= _size(self._kept.pop(name, {}))

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{name}.safetensors"


def _copied(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    """In memory of its own: a tensor that was read maps its file, and one that is sent to another process is
    moved into memory that both share, where it stays as long as it lives."""
    return {key: tensor.clone() for key, tensor in entry.items()}


def _size(entry: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())
