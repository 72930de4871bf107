"""`python -m tools.audit`: are advisories known for the versions that constraints.txt pins?

Advisories are read from a copy of the OSV database's PyPI part (a folder or zip of its JSON files, as
https://osv.dev offers for download); without one, `pip-audit` is run, if it is installed, which needs a
network. What neither can answer is reported, never passed over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
EXIT = "exit status: 0 nothing is known; 1 an advisory applies; 2 bad input; 4 no advisories available"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__, epilog=EXIT)
    parser.add_argument(
        "--advisories", type=Path, metavar="PATH", help="OSV's PyPI advisories: a folder or zip"
    )
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, help="(default: constraints.txt)")
    options = parser.parse_args()
    pins = read_pins(options.constraints)
    if options.advisories is None:
        return _ask_pip_audit(options.constraints)
    if not options.advisories.exists():
        print(f"error: there are no advisories at {options.advisories}.", file=sys.stderr)
        return 2
    lines = [line for advisory in _advisories(options.advisories) for line in matches(advisory, pins)]
    print("\n".join(lines) if lines else f"no advisory applies to the {len(pins)} pinned versions")
    return 1 if lines else 0


def read_pins(path: Path) -> dict[str, Version]:
    """Return the pinned version of every package in a constraints file, by its normalised name."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def matches(advisory: dict[str, Any], pins: dict[str, Version]) -> list[str]:
    """Return a line for each pinned package that an OSV advisory affects."""
    if "withdrawn" in advisory:
        return []
    lines = []
    for affected in advisory.get("affected", []):
        package = affected.get("package", {})
        name = canonicalize_name(package.get("name", ""))
        if package.get("ecosystem") != "PyPI" or name not in pins:
            continue
        listed = str(pins[name]) in affected.get("versions", [])
        if listed or any(_inside(pins[name], span) for span in affected.get("ranges", [])):
            lines.append(f"{name}=={pins[name]}: {advisory['id']}: {advisory.get('summary', 'no summary')}")
    return lines


def _inside(version: Version, span: dict[str, Any]) -> bool:
    """Return whether a version lies in a range of events that introduce and fix."""
    if span.get("type") != "ECOSYSTEM":
        return False
    inside = False
    events = [(_version(text), kind) for event in span.get("events", []) for kind, text in event.items()]
    for at, kind in sorted(event for event in events if event[0] is not None):
        if kind == "introduced" and version >= at:
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    return inside


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _advisories(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield json.loads(file.read_text(encoding="utf-8"))
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


def _ask_pip_audit(constraints: Path) -> int:
    beside = Path(sys.executable).with_name("pip-audit")
    program = str(beside) if beside.is_file() else shutil.which("pip-audit")
    why = "pip-audit is not installed ('pip install pip-audit')"
    if program is not None:
        command = [
            program,
            "--requirement",
            str(constraints),
            "--no-deps",
            "--disable-pip",
            "--progress-spinner=off",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode in (0, 1) and ("No known vulnerabilities" in done.stderr or done.stdout):
            print((done.stdout or done.stderr).strip())
            return done.returncode
        why = (done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
    print(
        f"no advisories available: {why}; download OSV's PyPI advisories and give them as --advisories.",
        file=sys.stderr,
    )
    return 4


if __name__ == "__main__":
    sys.exit(main())
