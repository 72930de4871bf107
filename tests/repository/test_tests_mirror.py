"""Tests mirror the folders: every module has a test file at its path, or one that names it."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.paths import ROOT
from tools.untested import FOLDERS, find_tests, modules, named_in

TESTS, TESTED = ROOT / "tests", find_tests()
# Folders that hold programs and helpers beside or instead of tests.
PROGRAMS = (TESTS / "support", TESTS / "faults")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_has_a_test(folder: str) -> None:
    without = [
        f"{name}: write {TESTS.name}/{path.relative_to(ROOT).with_name('test_' + path.name)}"
        for name, path in modules().items()
        if path.is_relative_to(ROOT / folder) and name not in TESTED
    ]
    assert not without, "or name it in the first paragraph of the docstring of a file that tests it"


def test_every_test_file_belongs_to_a_module() -> None:
    """In the folders that mirror others; those of `repository` and `scripts` may be about no module."""
    belonging = {path for paths in TESTED.values() for path in paths}
    files = [path for folder in FOLDERS for path in (TESTS / folder).rglob("test_*.py")]
    assert not [str(path.relative_to(ROOT)) for path in files if path not in belonging]


def test_names_in_docstrings_are_modules() -> None:
    known = modules()
    for path in TESTS.rglob("test_*.py"):
        assert not [name for name in named_in(path) if name not in known], path


def test_nothing_but_tests_lies_among_the_tests() -> None:
    others = {
        str(path.relative_to(ROOT))
        for path in TESTS.rglob("*.py")
        if not path.name.startswith("test_") and path.name not in ("__init__.py", "conftest.py")
        if not any(path.is_relative_to(folder) for folder in PROGRAMS)
        if "run_moved(" not in path.read_text(encoding="utf-8")  # an old command's name
    }
    assert not others


def test_no_link_is_committed() -> None:
    """A link names a place of one machine, such as runs or an environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []
