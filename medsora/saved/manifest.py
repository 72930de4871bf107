"""Manifests of saved folders: what each file must be, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.runtime.files import is_file, read_patiently

CHECKPOINT_FORMAT = 1


def checkpoint_format(folder: Path) -> int | None:
    """Return the format that a checkpoint's manifest names, or None if it cannot be read."""
    try:
        found = json.loads(read_patiently(Path.read_bytes, folder / "manifest.json"))["format"]
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if type(found) is int else None


def checkpoint_problem(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None: a file lost, cut or changed, a wrong state.

    Raises `BadInput` if a file cannot be read: it may be whole (`read_patiently`).
    """
    try:
        manifest = json.loads(read_patiently(Path.read_bytes, folder / "manifest.json"))
        if manifest["format"] != CHECKPOINT_FORMAT:
            return f"its format is {manifest['format']}, this version of MedSora reads {CHECKPOINT_FORMAT}"
        if "state.json" not in manifest["files"]:
            return "its manifest does not list state.json"
        for name, wanted in manifest["files"].items():
            path = folder / name
            if folder.resolve() not in path.resolve().parents:
                return f"its manifest names a file outside the folder: {name}"
            if not is_file(path):
                return f"{name} is missing"
            if (size := read_patiently(Path.stat, path).st_size) != wanted["size"]:
                return f"{name} has {size} bytes instead of {wanted['size']}"
            if read_patiently(sha256, path) != wanted["sha256"]:
                return f"{name} does not match its checksum"
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return _state_problem(folder)


def _state_problem(folder: Path) -> str | None:
    try:
        state = json.loads(read_patiently(Path.read_bytes, folder / "state.json"))
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as error:
        return f"state.json cannot be read ({type(error).__name__})"
    if not isinstance(state, dict) or f"step-{state.get('step')!r:0>7}" != folder.name:
        return "state.json does not say the step that the folder's name says"
    return None


def _digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
