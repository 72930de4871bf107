"""Shipped configs are found by name from anywhere, and a file of one's own is used before them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medsora.config.load import load_config
from medsora.config.shipped import find_config, models_folder, shipped_file, shipped_models, shipped_names
from medsora.errors import BadInput
from medsora.saved.find import find_base
from tests.support.paths import CONFIGS


@pytest.mark.parametrize("name", ["phantom", "phantom.yaml", "configs/phantom.yaml", "configs/phantom"])
def test_a_shipped_config_is_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(CONFIGS / "phantom.yaml")


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "phantom.yaml"
    own.parent.mkdir()
    own.write_text("")
    own.with_name("phantom_base.json").write_text("{}")
    assert find_config("configs/phantom.yaml").samefile(own)
    assert shipped_file("configs/phantom_base.json") == "configs/phantom_base.json"


@pytest.mark.parametrize("name", ["phantm", "other/phantom.yaml", ".", ""])
def test_a_missing_config_lists_the_shipped_names(name: str) -> None:
    with pytest.raises(BadInput, match=", ".join(shipped_names())):
        find_config(name)


def test_a_file_that_a_config_names_is_found_beside_the_shipped_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(shipped_file("configs/phantom_base.json")).samefile(CONFIGS / "phantom_base.json")
    outside = "configs/../medsora/version.py"
    for other in ("THUDM/CogVideoX-2b", "configs/nothing.json", "my/phantom_base.json", outside, None):
        assert shipped_file(other) == other


@pytest.mark.parametrize("name", shipped_names())
def test_all_that_a_shipped_config_takes_from_beside_it_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = re.findall(r"^ +\w+: (configs/\S+)", find_config(name).read_text(encoding="utf-8"), re.MULTILINE)
    assert [path for path in named if not Path(shipped_file(path)).exists()] == []
    if name in ("phantom_model", "phantom_clinic"):
        assert Path(find_base(load_config(name))[0]).samefile(CONFIGS / "models" / "phantom")


def test_shipped_models_are_the_folders_beside_the_shipped_configs() -> None:
    assert models_folder().samefile(CONFIGS / "models")
    assert shipped_models() == ["phantom"]


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_begins_with_what_it_is_for_and_its_command(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").partition("\nrun:")[0].splitlines()[1:]
    commands = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    assert lines[0].startswith("# ")
    assert lines[0] != f"#   {commands[0]}"
    assert "medsora demo" in commands or any(f"--config configs/{name}.yaml" in line for line in commands)
