"""Features of a clip set on disk: written in any order by any number of processes, read as a stream.

Written as files, not through a memory map, which would crash the process on a full disk.
One `.npy` file, float32 (clips, rows per clip, width). A real set's file is kept and found again by its
content: the clips' pixels and everything that decides the extractor. While it is made it is called `.partial`
and has a `.done` file beside it, a checksum per clip that is written (0: none), so that an interrupted
extraction resumes with the clips that are missing or damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.runtime.files import make_folder, read_patiently, write_json

log = logging.getLogger(__name__)

FORMAT = 1
ROWS_AT_ONCE = 4096
CHECKSUM = np.dtype("<u4")
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TokenError)  # numpy parses headers as Python


class Extractor:
    """Turns clips into features. `identity` names all that decides them: weights, sizes, settings.

    `title` is what its features are for, in the sentence about clips shorter than `min_frames`.
    """

    identity: dict[str, Any]
    width: int
    title, min_frames = "", 1

    def rows(self, frames: int) -> int:
        """Return how many rows of features a clip of so many frames has, by default one.

        Raises `BadInput` for clips that are too short.
        """
        if frames < self.min_frames:
            raise BadInput(
                f"{self.title} needs clips of at least {self.min_frames} frames, not {frames}; "
                "raise --frames."
            )
        return 1

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, rows, width) for uint8 (B, F, H, W, 3)."""


@dataclass(frozen=True)
class Features:
    """Features (clips, rows, width) with a weight per clip: 0 leaves it out, 2 counts it twice."""

    values: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Features:
        """Return `values` with every clip counted once."""
        return cls(values, np.ones(len(values)))

    @classmethod
    def of_clips(cls, extractor: Extractor, clips: Sequence[np.ndarray]) -> Features:
        """Return the features of clips, each uint8 (F, H, W, 3), in memory."""
        return cls.of(np.concatenate([extractor(clip[None]) for clip in clips]))

    def reweighted(self, weights: np.ndarray) -> Features:
        """Return the same features under other weights (clips,)."""
        return Features(self.values, weights)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (values (b, rows, width), weights (b,)) of the clips that count, a bounded part at a time."""
        used = np.flatnonzero(self.weights)
        step = max(ROWS_AT_ONCE // self.values.shape[1], 1)
        for start in range(0, len(used), step):
            part = used[start : start + step]
            yield np.asarray(self.values[part]), self.weights[part]

    def per_clip(self) -> np.ndarray:
        """Return (clips, width) of features that have one row per clip."""
        return np.asarray(self.values[:, 0])


class FeatureStore:
    """The file of one (clip set, extractor); `begin`, `write` and `finish` make it, `read` gives it."""

    def __init__(
        self, folder: Path, clips_digest: str, extractor: Extractor, clips: int, frames: int
    ) -> None:
        self.extractor = extractor
        self.shape = (clips, extractor.rows(frames), extractor.width)
        self.made_of = {"format": FORMAT, "clips_sha256": clips_digest, "extractor": extractor.identity}
        key = hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()[:20]
        self.path = folder / f"{extractor.identity['name']}-{key}.npy"
        self.writer = ""
        self._held: BinaryIO | None = None

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(f"{self.writer}.partial")

    @property
    def _done(self) -> Path:
        return self.path.with_suffix(f"{self.writer}.done")

    def is_complete(self) -> bool:
        """Return whether the features are there; a damaged file is not.

        It is compared with the SHA-256 beside it, which features of earlier versions do not have. Raises
        `BadInput` if it cannot be read now.
        """
        try:
            described = json.loads(read_patiently(Path.read_bytes, self.path.with_suffix(".json")))
            wanted = described.get("sha256")
            if wanted is not None and read_patiently(sha256, self.path) != wanted:
                raise ValueError("they do not match their checksum")
            stored = np.load(self.path, mmap_mode="r")
        except FileNotFoundError:
            return False
        except BadInput:  # it cannot be read now, which is no damage
            raise
        except (*UNREADABLE, AttributeError) as error:
            log.warning("the features in %s cannot be read (%s); they are extracted again.", self.path, error)
            return False
        return self._fits(stored)

    def begin(self) -> str:
        """Open a file for `write`, or the one that an interrupted run left; return its `writer`.

        Processes that help are given this name. A file that another run is filling is left alone: this run
        makes one of its own. Raises `OSError` if the place cannot be written.
        """
        make_folder(self.path.parent)
        if not self._hold():
            self.writer = f".{os.getpid()}"
            self._hold()
        if not self._has_begun():
            np.lib.format.open_memmap(self._partial, "w+", np.float32, self.shape).flush()
            self._done.write_bytes(bytes(self.shape[0] * CHECKSUM.itemsize))
        return self.writer

    def left(self) -> list[int]:
        """Return the numbers of the clips that are still to be written, or whose features are damaged."""
        rows, sums = np.load(self._partial, mmap_mode="r"), np.fromfile(self._done, CHECKSUM).tolist()
        return [clip for clip, wanted in enumerate(sums) if not wanted or wanted != _checksum(rows[clip])]

    def write(self, indices: list[int], clips: np.ndarray) -> None:
        """Extract and store the features of the clips `indices`. Raises `OSError` where the disk refuses."""
        rows = [row.tobytes() for row in np.asarray(self.extractor(clips), np.float32)]
        header = self._partial.stat().st_size - self.shape[0] * len(rows[0])
        try:
            with self._partial.open("r+b") as place:
                for index, row in zip(indices, rows, strict=True):
                    place.seek(header + index * len(row))
                    place.write(row)
            with self._done.open("r+b") as done:
                for index, row in zip(indices, rows, strict=True):
                    done.seek(index * CHECKSUM.itemsize)
                    done.write(_checksum(row).to_bytes(CHECKSUM.itemsize, "little"))
        except OSError as error:
            raise OSError(
                f"{self._partial} cannot be written ({error.strerror}); make room and start the same command "
                "again; it resumes here."
            ) from error

    def finish(self) -> None:
        """Give the file its name, once every process has written its part.

        Raises `BadInput` if some of it is not what was written.
        """
        if damaged := len(self.left()):
            raise BadInput(
                f"{self._partial}: the features of {damaged} of {self.shape[0]} clips do not match their "
                "checksums; run the same command again, which extracts these again."
            )
        described = {**self.made_of, "shape": self.shape, "sha256": sha256(self._partial)}
        write_json(self.path.with_suffix(".json"), described, ensure_ascii=False)
        self._partial.replace(self.path)
        self._done.unlink()
        self._held.close()

    def read(self) -> Features:
        """Return the features, mapped from the file."""
        return Features.of(np.load(self.path, mmap_mode="r"))

    def _hold(self) -> bool:
        """Take the unfinished file for this process, as long as it lives; False if another one has it."""
        self._held = self._done.open("ab")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._held.fileno()), self._done.stat())
        except OSError:
            return False

    def _has_begun(self) -> bool:
        try:
            place = np.load(self._partial, mmap_mode="r")
        except UNREADABLE:
            return False
        if not self._fits(place):
            return False
        done, clips = np.fromfile(self._done, np.uint8), self.shape[0]
        if len(done) == clips:  # written by an earlier version, without checksums
            sums = [_checksum(rows) if flag else 0 for flag, rows in zip(done, place, strict=True)]
            np.array(sums, CHECKSUM).tofile(self._done)
        return len(done) in (clips, clips * CHECKSUM.itemsize)

    def _fits(self, stored: np.ndarray) -> bool:
        return stored.shape == self.shape and stored.dtype == np.float32


def _checksum(rows: bytes | np.ndarray) -> int:
    """Return a CRC-32 of a clip's features that is never 0, which stands for none."""
    return zlib.crc32(rows) or 1
