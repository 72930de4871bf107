"""Versions that a result depends on: libraries and this project's own code."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from medsora.runtime.digests import sha256
from medsora.version import __version__

LIBRARIES = ("torch", "diffusers", "accelerate", "timm", "safetensors")


PACKAGES = ("medsora", "vae", "flow_prior", "kernels")


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"medsora": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def code_digest() -> str:
    """Return a SHA-256 over this project's own source files: which code ran, committed or not."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)}".encode())
    return digest.hexdigest()
