"""MedSora installed in three ways, for the tests of its names and of its wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.installing import installations
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline

PROGRAM = ROOT / "tests" / "support" / "check_import_names.py"


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkout, the folders that hold its wheel and its editable wheel, and a foreign package `kernels`."""
    folder = tmp_path_factory.mktemp("names")
    checkout = installations.copy_checkout(folder / "checkout")
    found = {"bare": checkout, "foreign": installations.write_foreign_kernels(folder / "foreign")}
    for kind in ("wheel", "editable"):
        wheel = installations.build(checkout, folder / "built" / kind, kind)
        found[kind] = installations.install(wheel, folder / kind)
    shutil.copy(PROGRAM, checkout)
    empty = folder / "empty"
    empty.mkdir()
    shutil.copy(PROGRAM, empty)
    tiny_pipeline().save_pretrained(folder / "model")
    return found | {"empty": empty, "model": folder / "model", "folder": folder}
