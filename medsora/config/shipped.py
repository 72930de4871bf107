"""Configs, base weights and models that come with MedSora (`configs/`, `medsora.configs` in a wheel)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path, PurePath

from medsora.errors import BadInput
from medsora.runtime.files import is_file

FOLDER = "configs"


def shipped_names() -> list[str]:
    """Return the names of the shipped configs, such as "phantom"."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """Return an existing path `name`, or the shipped config of "phantom", "configs/phantom.yaml".

    Raises `BadInput`, which lists the shipped names, if there is neither.
    """
    path = Path(name)
    if is_file(path):
        return path
    named = path if path.suffix else Path(f"{path}.yaml")
    shipped = _folder() / named.name
    if named.parent in (Path(), Path(FOLDER)) and shipped.is_file():
        return shipped
    raise BadInput(f"there is no config file {path}; MedSora comes with {', '.join(shipped_names())}.")


def shipped_file(name: str | None) -> str | None:
    """Return the path for a config's value `name`; "configs/..." that is missing here is the shipped file."""
    if name is None or Path(name).exists() or PurePath(name).parts[:1] != (FOLDER,) or ".." in name:
        return name
    shipped = _folder() / PurePath(name).relative_to(FOLDER)
    return str(shipped) if shipped.exists() else name


def models_folder() -> Path:
    """Return the folder of the models that come with MedSora: one folder each, as `medsora export` writes."""
    return _folder() / "models"


def shipped_models() -> list[str]:
    """Return the names of the models that come with MedSora, such as "phantom"."""
    return sorted(path.parent.name for path in models_folder().glob("*/model_index.json"))


def _folder() -> Path:
    return Path(str(files("medsora.configs")))
