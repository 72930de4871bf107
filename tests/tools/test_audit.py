"""The audit of pinned versions finds what applies, and says when nobody could be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.support.paths import ROOT
from tools import audit


def advisory(name: str, *events: dict[str, str], **others: Any) -> dict[str, Any]:
    package = {"ecosystem": "PyPI", "name": name}
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    return {"id": "X-1", "summary": "bad", "affected": [{"package": package, "ranges": ranges}], **others}


@pytest.mark.parametrize(
    ("version", "affected"), [("0.9", False), ("1.0", True), ("1.9", True), ("2.0", False), ("3.5", True)]
)
def test_ranges(version: str, affected: bool) -> None:
    found = advisory("Some_Package", {"introduced": "1.0"}, {"fixed": "2.0"}, {"introduced": "3"})
    assert bool(audit.matches(found, {"some-package": Version(version)})) == affected
    assert not audit.matches(found, {"another": Version(version)})
    assert not audit.matches({**found, "withdrawn": "2026"}, {"some-package": Version(version)})


def test_the_pins_are_read_and_compared(tmp_path: Path) -> None:
    pins = audit.read_pins(ROOT / "constraints.txt")
    assert len(pins) > 50
    (tmp_path / "one.json").write_text(json.dumps(advisory("PyYAML", {"introduced": "0"}, {"fixed": "999"})))
    command = [sys.executable, "-m", "tools.audit", "--advisories", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, f"pyyaml=={pins['pyyaml']}: X-1: bad\n")
    (tmp_path / "one.json").write_text(json.dumps(advisory("PyYAML", {"introduced": "0"}, {"fixed": "1"})))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"no advisory applies to the {len(pins)} pinned versions\n")


def test_a_missing_source_of_advisories_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(audit.shutil, "which", lambda name: None)
    assert audit.main() == 4
    assert capsys.readouterr().err.startswith("no advisories available: pip-audit is not installed")
