"""medsora.runtime.versions, medsora.version: the versions and the code that a result depends on."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

import pytest

from medsora.runtime import versions
from medsora.version import __version__


def test_versions_are_those_of_the_environment() -> None:
    found = versions.library_versions()
    assert found["medsora"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert set(versions.LIBRARIES) < set(found)


def test_the_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", __version__)


def test_the_codes_digest_changes_with_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions.code_digest()
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert versions.code_digest() == before
    sha256, changed = versions.sha256, []

    def one_file_changed(path: Path) -> str:
        if path.name == "orders.py":
            changed.append(path)
            return "0" * 64
        return sha256(path)

    monkeypatch.setattr(versions, "sha256", one_file_changed)
    assert versions.code_digest() != before
    assert changed
