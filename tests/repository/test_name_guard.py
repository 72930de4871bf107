"""medsora.name_guard: the name `kernels`: ours imports with torch alone; a stranger of that name is answered
with a sentence.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

SCRIPTS = ("train_vae.py", "train_dit.py", "sample_ddim.py")


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def pretend_installed(folder: Path) -> None:
    info = folder / "kernels-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.9\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_installed_kernels_stops_every_script_with_one_sentence(script: str, tmp_path: Path) -> None:
    pretend_installed(tmp_path)
    done = run(script, "--help", path=tmp_path)
    assert done.returncode == 2
    assert "pip uninstall kernels" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_kernels_that_resolves_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from medsora.name_guard import kernels_name_problem; print(kernels_name_problem())"
    assert str(tmp_path / "kernels") in run("-c", code).stdout


def test_our_kernels_needs_torch_alone_and_has_no_version() -> None:
    code = (
        "import sys, kernels\n"
        "heavy = {'diffusers', 'transformers', 'triton', 'mamba_ssm', 'timm', 'medsora'} & set(sys.modules)\n"
        "print(sorted(heavy), hasattr(kernels, '__version__'))"
    )
    assert run("-c", code).stdout.strip() == "[] False"


def test_transformers_imports_beside_our_kernels() -> None:
    code = "import kernels, transformers; from diffusers import DiffusionPipeline; print('fine')"
    done = run("-c", code)
    assert done.stdout.strip() == "fine", done.stderr
