"""The wheel holds one package with everything that its commands need, and works from an empty folder."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from medsora.runtime.versions import code_digest
from tests.support.installing import installations
from tests.support.paths import CONFIGS, ROOT
from tests.support.patience import PATIENCE_S

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def wheel(places: dict[str, Path]) -> Distribution:
    return next(found for found in distributions(path=[str(places["wheel"])]) if found.name == "medsora")


def run_installed(places: dict[str, Path], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=installations.environment(folder.with_name("start"), places["wheel"]),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    beside = settings["package-dir"]
    found = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in {"medsora": "medsora", **beside}.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert settings["packages"] == sorted(found)


def test_the_wheel_holds_one_package_with_its_data(wheel: Distribution) -> None:
    files = {path.as_posix() for path in wheel.files if ".." not in path.parts and path.suffix != ".pyc"}
    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"medsora"}
    data = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*") if path.is_file()}
    assert {
        name.removeprefix("medsora/configs/") for name in files if name.startswith("medsora/configs/")
    } == {name for name in data if not name.endswith(".pyc")}
    assert "medsora/py.typed" in files


def test_the_console_command_names_the_shipped_configs(places: dict[str, Path], tmp_path: Path) -> None:
    command = str(places["wheel"] / "bin" / "medsora")
    done = run_installed(places, tmp_path / "here", command, "train-vae", "--config", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no config file nowhere; MedSora comes with ")
    assert "phantom_labels" in done.stderr


def test_the_wheel_finds_what_its_configs_name_and_has_the_checkout_s_digest(
    places: dict[str, Path], tmp_path: Path
) -> None:
    code = (
        "from medsora.config.load import load_config\n"
        "from medsora.config.shipped import shipped_file\n"
        "from medsora.runtime.versions import code_digest\n"
        "vae = load_config('configs/phantom.yaml').vae\n"
        "print(vae.base, shipped_file(vae.base), shipped_file(vae.weights), code_digest())"
    )
    done = run_installed(places, tmp_path / "here", "-c", code)
    given, base, weights, digest = done.stdout.split()
    installed = places["wheel"] / "medsora" / "configs"
    assert given == "configs/phantom_base.json"
    assert (Path(base), Path(weights)) == (
        installed / "phantom_base.json",
        installed / "phantom_base.safetensors",
    )
    assert digest == code_digest()
