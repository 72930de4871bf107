"""MedSora as a wheel, as an editable installation and as a bare checkout, beside a foreign package `kernels`.

An installation is a folder that each process started with `environment(...)` treats like its site-packages;
what the environment of the tests itself has of MedSora is hidden.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

SOURCES = ("medsora", "vae", "flow_prior", "kernels", "configs", "pyproject.toml", "README.md", "LICENSE")
SCRIPTS = ("train_vae.py", "train_dit.py", "sample_ddim.py", "evaluate.py")
# The names that transformers imports from Hugging Face's `kernels` when it finds a version that fits it.
FOREIGN_CLASSES = (
    *("CUDAProperties", "Device", "FuncRepository", "KernelizeFallback", "LayerRepository"),
    *("LocalLayerRepository", "Mode", "ROCMProperties"),
)
FOREIGN_DECORATORS = (
    *("get_kernel", "kernelize", "register_kernel_mapping", "replace_kernel_forward_from_hub"),
    *("use_kernel_forward_from_hub", "use_kernel_mapping", "use_kernelized_func"),
)
FOREIGN = '''"""A stand-in for Hugging Face's package."""
FOREIGN = True
def _decorator(*arguments, **options):
    return lambda decorated: decorated
'''
START = """import os, site, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in finder.__module__]
for folder in os.environ["MEDSORA_TEST_SITES"].split(os.pathsep):
    site.addsitedir(folder)
"""
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
)


def copy_checkout(folder: Path) -> Path:
    """Copy what a wheel is built from, and the scripts, into `folder`."""
    for name in (*SOURCES, *SCRIPTS):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def build(checkout: Path, folder: Path, kind: str = "wheel") -> Path:
    """Build a "wheel" or an "editable" wheel of `checkout` into `folder`, without the network."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, site: Path) -> Path:
    """Install `wheel` into the folder `site`, without its dependencies."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(wheel)], capture_output=True, timeout=PATIENCE_S, check=True)
    return site


def write_foreign_kernels(site: Path) -> Path:
    """Write a distribution `kernels` that transformers uses: its version fits, and it has all names."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    package, info = site / "kernels", site / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    classes = "".join(f"class {name}:\n    pass\n" for name in FOREIGN_CLASSES)
    decorators = "".join(f"{name} = _decorator\n" for name in FOREIGN_DECORATORS)
    (package / "__init__.py").write_text(FOREIGN + classes + decorators)
    (package / "layer.py").write_text("")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    return site


def environment(start: Path, *sites: Path) -> dict[str, str]:
    """Return the environment of processes for which `sites` are installed; `start` is a folder to write."""
    start.mkdir(parents=True, exist_ok=True)
    (start / "sitecustomize.py").write_text(START)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = os.pathsep.join(map(str, sites))
    return clean | {"PYTHONPATH": str(start), "MEDSORA_TEST_SITES": paths, "OMP_NUM_THREADS": "1"}
