"""Versions that a result depends on: libraries and this project's own code."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from medsora.runtime.digests import sha256
from medsora.version import __version__

LIBRARIES = ("torch", "diffusers", "accelerate", "timm", "safetensors")
PACKAGES = ("medsora", "medsora.configs", "medsora.flow_prior", "medsora.kernels", "medsora.vae")


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    versions = {"medsora": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in LIBRARIES}


def code_digest() -> str:
    """Return a SHA-256 over this project's modules by import name: which code ran, committed or not.

    A wheel's and a checkout's are equal where their code is.
    """
    digests = {}
    for package in PACKAGES:
        (folder,) = map(Path, find_spec(package).submodule_search_locations)
        for path in folder.rglob("*.py"):
            digests[".".join((package, *path.relative_to(folder).with_suffix("").parts))] = sha256(path)
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(f"{name} {digests[name]}".encode())
    return digest.hexdigest()
