"""Packages that sampling does not need, by the extra of the installation that brings them."""

from __future__ import annotations

import traceback

# By import name; pyproject.toml lists the distributions.
EXTRAS = {
    "train": ("jinja2", "lpips", "matplotlib", "tensorboard", "timm", "torchmetrics", "torchvision"),
    "eval": (
        *("jinja2", "lpips", "matplotlib", "scipy", "timm", "torch_fidelity", "torchmetrics"),
        *("torchvision", "transformers"),
    ),
    "downstream": ("torchvision", "transformers"),
    "reconstruct": ("pycolmap",),
    "app": ("gradio", "jinja2", "matplotlib"),
}


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Return a sentence with the command that installs the missing module, None if no extra holds it.

    A package of two extras is named with that of the code which imports it.
    """
    name = (error.name or "").split(".")[0]
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    evaluates = any("evaluation" in file and "medsora" in file for file in files)
    for extra in sorted(EXTRAS, key=lambda extra: (extra == "eval") != evaluates):
        if name in EXTRAS[extra]:
            return f"this needs {name}, which is not installed: pip install 'medsora[{extra}]'."
    return None
