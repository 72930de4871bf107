"""Cache of earlier scans: one JSON file, keyed by path, size and modification time of every source."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from dataclasses import asdict
from pathlib import Path

import av

from medsora.data.checking.scan import Scan
from medsora.data.reading.decoding import Interpretation, SeekPoint
from medsora.data.reading.find import Source
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import write_text

log = logging.getLogger(__name__)

# Seek points hold checksums of decoded pixels: another decoder or processor may round differently.
_VERSION = {"format": 11, "av": av.__version__, "machine": platform.machine()}


def default_cache_path(root: str | Path) -> Path:
    """Return where the scans of the folder `root` are kept by default."""
    key = hashlib.sha256(os.fsencode(Path(root).resolve())).hexdigest()[:12]
    return Path("runs") / "cache" / f"check-{key}.json"


class CheckCache:
    """Scans by source. A file that is missing, broken or made by another version starts empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, dict] = {}
        self._states: dict[str, list] = {}  # before the scan: a file may be copied while it is scanned
        try:
            content = unsealed(json.loads(path.read_text(encoding="utf-8")))
            if content.get("version", content.get("made_by")) == _VERSION:  # the latter in earlier versions
                self._entries = dict(content["scans"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cache %s cannot be read (%s); every file is checked again.", path, error)

    def get(self, source: Source) -> Scan | None:
        """Return the scan of `source` if it is unchanged since, else None."""
        key = _key(source)
        entry = self._entries.get(key)
        try:
            self._states[key] = _state(source)
            if entry is None or entry["state"] != self._states[key]:
                return None
            scan = {name: tuple(v) if isinstance(v, list) else v for name, v in entry["scan"].items()}
            points = tuple(SeekPoint(*point) for point in scan["seek_points"])
            marks = tuple(tuple(box) for box in scan["marks"])
            interpretation = Interpretation(*scan["interpretation"])
            return Scan(**scan | {"seek_points": points, "marks": marks, "interpretation": interpretation})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, source: Source, scan: Scan) -> None:
        """Store `scan` for the source as `get` found it before; nothing for a broken link."""
        if (state := self._states.get(_key(source))) is not None:
            self._entries[_key(source)] = {"state": state, "scan": asdict(scan)}

    def save(self) -> None:
        """Write the file; if it cannot be written, a warning is logged."""
        content = json.dumps(sealed({"version": _VERSION, "scans": self._entries}))
        try:
            write_text(self.path, content)
        except OSError as error:
            log.warning("the check will be made again next time: %s", error)


def _key(source: Source) -> str:
    path = os.path.abspath(source.path)
    part = source.recording is not None and source.name != source.folder_name
    return os.path.join(path, os.path.basename(source.name)) if part else path


def _state(source: Source) -> list:
    """Return what changes when the source does: size and time of change, of every picture in a folder."""
    recording = source.recording
    if recording is None:
        status = source.path.stat()
        return [status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(f"{recording.breaks}/{recording.stills}/{recording.named_as_masks}/".encode())
    for picture in recording.pictures:
        status = (source.path / picture).stat()
        digest.update(f"{picture}/{status.st_size}/{status.st_mtime_ns}/".encode(errors="surrogateescape"))
    return [digest.hexdigest()]
