"""Stops with one sentence when another package called `kernels` would be imported instead of ours.

Hugging Face publishes a distribution of that name which transformers and diffusers probe for: side by side
with ours, one of the two fails with an import error that nobody would understand.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def check_kernels_name() -> None:
    """Leave with exit status 2 if `kernels` is installed or would not be this repository's own package."""
    if problem := kernels_name_problem():
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def kernels_name_problem() -> str | None:
    """Return the sentence that says what is wrong with the name `kernels` here, or None if all is well."""
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        return (
            f"the package 'kernels' {version} is installed in this environment and hides MedSora's own "
            "'kernels' folder; run 'pip uninstall kernels', or use a fresh environment (make setup)."
        )
    spec = importlib.machinery.PathFinder.find_spec("kernels")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != REPOSITORY / "kernels":
        found = spec.origin if spec else "nothing"
        return (
            f"'import kernels' would find {found} instead of {REPOSITORY / 'kernels'}; "
            "run the command from the repository's root, or remove the other one from PYTHONPATH."
        )
    return None
