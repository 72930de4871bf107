"""medsora.checkout: names are `medsora.X` in a wheel, an editable installation and a checkout, beside a
foreign `kernels`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.support.installing import installations
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

KINDS = ("wheel", "editable", "bare")
PROCESSES = {
    "script": ("check_import_names.py",),
    "-m": ("-m", "check_import_names"),
    "launch": ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "check_import_names.py"),
    "pytest": ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "check_import_names.py"),
}
# Part of the matrix {kinds} x {foreign or not} x {processes} with what each process does; `make wheel-check`
# runs all of it.
QUICK = {
    ("wheel", True, "script"): {"clip": "", "commands": True},
    ("bare", True, "launch"): {"clip": "first", "commands": False},
    ("bare", False, "pytest"): {"clip": "", "commands": False},
    ("editable", False, "-m"): {"clip": "", "commands": False},
}
ALL = {case: {"clip": "last", "commands": True} for case in product(KINDS, (True, False), PROCESSES)}
CASES = ALL if os.environ.get("MEDSORA_ALL_INSTALLATIONS") else QUICK


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_every_name_leads_to_one_module(
    case: tuple[str, bool, str], places: dict[str, Path], tmp_path: Path
) -> None:
    kind, foreign, process = case
    sites = [places[kind]] if kind != "bare" else []
    settings = {
        "foreign": foreign,
        "wheel": kind == "wheel",
        "clip": CASES[case]["clip"],
        "model": str(places["model"]) if CASES[case]["commands"] else "",
        "out": str(tmp_path / "videos"),
    }
    where = installations.environment(tmp_path / "start", *sites, *[places["foreign"]] * foreign)
    done = subprocess.run(
        [sys.executable, *PROCESSES[process]],
        cwd=places["empty" if kind == "wheel" else "bare"],
        env=where | {"MEDSORA_TEST_CASE": json.dumps(settings)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "import names: fine" in done.stdout


@pytest.mark.parametrize("first", ["kernels.reference", "vae.shapes"])
def test_an_old_name_imported_before_medsora_is_the_same_module(first: str, tmp_path: Path) -> None:
    second = installations.copy_checkout(tmp_path / "second")
    code = (
        f"import sys, {first}, medsora.{first}\n"
        f"assert sys.modules['{first}'] is medsora.{first}\n"
        "print(sorted({'diffusers', 'transformers', 'triton', 'mamba_ssm', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=installations.environment(tmp_path / "start", second),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_our_kernels_imports_without_torch_and_has_no_version() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kernels\n"
        "print(kernels.__name__, hasattr(kernels, '__version__'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.strip() == "medsora.kernels False", done.stderr
