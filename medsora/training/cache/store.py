"""Tensors kept on disk under a key that hashes everything they depend on: never stale, never half a file.

One safetensors file per entry, written beside and renamed, with the key in its header; whatever is missing,
cut, damaged (`sealed_tensors`; older entries have no digest) or under another key reads as
absent and is computed again, unless the system cannot read it now (`BadInput`). A digest is compared once in
each process, and again where the file is another one or was written to. What was read last stays in memory,
up to `KEPT_BYTES` of each store in each process: a small store is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from medsora.errors import BadInput
from medsora.runtime.digests import check_tensors, parse_tensors, sealed_tensors
from medsora.runtime.files import make_folder, read_patiently, remove_leftovers, write_bytes, write_json
from medsora.runtime.progress_bar import progress_bar

KEPT_BYTES = 2**26
DTYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64}  # stored types


class TensorStore:
    """A folder of named entries, each a dictionary of tensors."""

    def __init__(self, root: Path, kind: str, depends_on: dict[str, Any]) -> None:
        """`depends_on` is everything that the entries' values depend on, as JSON values."""
        text = json.dumps(depends_on, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = Path(root) / f"{kind}-{self.key[:16]}"
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._kept_bytes = 0
        self._whole: dict[str, tuple[int, int, int]] = {}  # inode, size and time of files that were compared
        try:
            make_folder(self.folder)
            remove_leftovers(self.folder)
            write_json(self.folder / "depends_on.json", depends_on)
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(
                f"the cache folder {self.folder} cannot be written ({reason}); set cache.dir."
            ) from error

    def get(self, name: str) -> dict[str, Tensor] | None:
        """Return an entry, or None if it is absent or incomplete."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return _copied(self._kept[name])
        stored = self._read(name)
        if stored is None:
            return None
        entry, copy = stored
        self._keep(name, copy)
        return entry

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Return an entry that maps its file, and the copy in memory that is checked."""
        try:
            with read_patiently(lambda path: path.open("rb"), self._path(name)) as file:
                about_file = os.fstat(file.fileno())
                content = np.frombuffer(mmap(file.fileno(), 0, access=ACCESS_COPY), np.uint8)
            start, about, header = parse_tensors(content)
            copy = content[start:].copy()
            if about.get("key") != self.key:
                return None
            identity = (about_file.st_ino, about_file.st_size, about_file.st_mtime_ns)
            if self._whole.get(name) != identity:
                check_tensors(about, header, copy)
                self._whole[name] = identity
            return _tensors(header, content[start:]), _tensors(header, copy)
        except BadInput:  # it cannot be read now, which is no damage
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            return None

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write an entry; several processes may write the same one."""
        path = self._path(name)
        self._forget(name)
        try:
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            write_bytes(path, sealed_tensors(safetensors.torch.save(contiguous), key=self.key))
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"the cache entry {path} cannot be written: {error}; make room or set cache.dir."
            ) from error

    def missing(self, names: list[str]) -> list[str]:
        """Return those of `names` that are absent or incomplete on the disk."""
        return [name for name in names if self._read(name) is None]

    def fill(
        self,
        names: list[str],
        what: str,
        compute: Callable[[str], dict[str, Tensor]],
        accelerator: Accelerator,
    ) -> None:
        """Compute those of `names` that are missing; every process takes its share, all wait for the last."""
        missing = self.missing(names[accelerator.process_index :: accelerator.num_processes])
        show, title = bool(missing) and accelerator.is_local_main_process, f"{what} of {len(names)} clips"
        for name in progress_bar(title, missing, unit="clip", show=show):
            self.put(name, compute(name))
        accelerator.wait_for_everyone()

    def require(self, name: str) -> dict[str, Tensor]:
        """Return an entry that was written before. Raises `BadInput` if it is gone or cannot be read."""
        entry = self.get(name)
        if entry is None:
            raise BadInput(
                f"the cache entry {name} in {self.folder} is gone or damaged; run the same command "
                "again, which rebuilds it."
            )
        return entry

    def _keep(self, name: str, entry: dict[str, Tensor]) -> None:
        self._kept[name] = entry
        self._kept_bytes += _size(entry)
        while self._kept_bytes > KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, name: str) -> None:
        self._kept_bytes -= _size(self._kept.pop(name, {}))

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{name}.safetensors"


def _tensors(header: dict[str, Any], values: np.ndarray) -> dict[str, Tensor]:
    tensors = {}
    for name, described in header.items():
        first, end = described["data_offsets"]
        part = torch.from_numpy(values[first:end]).view(DTYPES[described["dtype"]])
        tensors[name] = part.reshape(described["shape"])
    return tensors


def _copied(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy an entry into memory of its own.

    A tensor that was read maps its file, and one that is sent to another process is moved into memory that
    both share, where it stays as long as it lives.
    """
    return {key: tensor.clone() for key, tensor in entry.items()}


def _size(entry: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())
