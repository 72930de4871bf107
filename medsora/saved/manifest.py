"""Manifests of saved folders: each file's size and digest, and the check against them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medsora.errors import BadInput, one_line
from medsora.runtime.digests import sha256
from medsora.runtime.files import files_below, is_file, read_patiently, write_json

CHECKPOINT_FORMAT = 1
MANIFEST = "manifest.json"
MAX_BYTES = 4 * 2**20  # maximum size of a manifest and of a state
MAX_SHOWN = 100  # maximum characters of a name in a message
PART_FILES = ("config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors")


def checkpoint_format(folder: Path) -> int | None:
    """Return the format that a checkpoint's manifest names, or None if it cannot be read."""
    try:
        number = json.loads(_bounded(folder / MANIFEST))["format"]
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int else None


def checkpoint_problem(folder: Path) -> str | None:
    """Return the fault of a checkpoint, or None: a file lost, truncated or changed, a wrong state.

    Raises `BadInput` if a file cannot be read: it may be intact (`read_patiently`).
    """
    try:
        manifest = json.loads(_bounded(folder / MANIFEST))
        if manifest["format"] != CHECKPOINT_FORMAT:
            written = one_line(str(manifest["format"]))[:MAX_SHOWN]
            return f"its format is {written}, this version of MedSora reads {CHECKPOINT_FORMAT}"
        if "state.json" not in manifest["files"]:
            return "its manifest does not list state.json"
        seen: set[Path] = set()
        for listed, wanted in manifest["files"].items():
            path, name = (folder / listed).resolve(), one_line(listed)[:MAX_SHOWN]
            if folder.resolve() not in path.parents:
                return f"its manifest names a file outside the folder: {name}"
            if path in seen:  # however often it is named, it is read once
                return f"its manifest names a file twice: {name}"
            seen.add(path)
            if not is_file(path):
                return f"{name} is missing"
            if (size := read_patiently(Path.stat, path).st_size) != wanted["size"]:
                return f"{name} has {size} bytes instead of {one_line(str(wanted['size']))[:MAX_SHOWN]}"
            if read_patiently(sha256, path) != wanted["sha256"]:
                return f"{name} does not match its checksum"
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return _state_problem(folder)


def write_manifest(root: Path, files: Iterable[Path]) -> None:
    """Write down the size and SHA-256 of `files` below `root`, for `refuse_changed` to compare."""
    write_json(root / MANIFEST, {"files": digest_folder(root, files)}, sort_keys=True)


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that decide what it computes."""
    kinds = (".json", ".safetensors")
    return [path for path in files_below(folder) if path.suffix in kinds and path.name != MANIFEST]


def refuse_changed(root: Path, *names: str) -> None:
    """Raise `BadInput` if one of the files `names` is not what `root`'s manifest lists under that name.

    Models of earlier versions have no manifest. What else a manifest lists costs nothing, because nobody
    reads it.
    """
    try:
        described = json.loads(_bounded(root / MANIFEST))
        files = described.get("files") if isinstance(described, dict) else None
        if not isinstance(files, dict):  # another program's
            return
        for name in names:
            if (wanted := files.get(name)) is None:
                continue
            path = root / name
            if not is_file(path):
                raise BadInput(f"{path} is missing; copy or save the model again.")
            size = read_patiently(Path.stat, path).st_size
            if size != wanted["size"] or read_patiently(sha256, path) != wanted["sha256"]:
                raise BadInput(
                    f"{path} is damaged or was changed: it does not match its checksum in {MANIFEST}; "
                    f"copy or save the model again, or remove {root / MANIFEST} if the change was meant."
                )
    except (FileNotFoundError, NotADirectoryError):
        return
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{root / MANIFEST} cannot be read ({type(error).__name__}); copy or save the model again."
        ) from error


def refuse_changed_part(folder: Path) -> None:
    """Raise `BadInput` if a model's part is not what its own manifest, or its folder's, lists."""
    if (folder / MANIFEST).is_file():
        refuse_changed(folder, *PART_FILES)
    else:
        folder = folder.resolve()
        refuse_changed(folder.parent, *(f"{folder.name}/{name}" for name in PART_FILES))


def _bounded(path: Path) -> bytes:
    """Return a file's content. Raises `ValueError` if it is no plain file, or larger than any manifest."""
    about = read_patiently(Path.stat, path)
    if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
        raise ValueError("no manifest is like that")
    return read_patiently(Path.read_bytes, path)


def _state_problem(folder: Path) -> str | None:
    try:
        state = json.loads(_bounded(folder / "state.json"))
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as error:
        return f"state.json cannot be read ({type(error).__name__})"
    if not isinstance(state, dict) or f"step-{state.get('step')!r:0>7}" != folder.name:
        return "state.json and the folder's name contain different steps"
    return None


def digest_folder(folder: Path, files: Iterable[Path] | None = None) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of `files`, by default all, by their paths below `folder`."""
    files = filter(is_file, files_below(folder)) if files is None else files
    return {
        path.relative_to(folder).as_posix(): {
            "size": read_patiently(Path.stat, path).st_size,
            "sha256": read_patiently(sha256, path),
        }
        for path in sorted(files)
    }
