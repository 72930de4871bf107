"""Commands one after the other in one process, because most of a command's start is the import of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

PROGRAM = """
import contextlib, io, json, runpy, sys
for command in json.loads(sys.argv[1]):
    output, errors, status = io.StringIO(), io.StringIO(), 0
    sys.argv = list(command)
    run = runpy.run_path if command[0].endswith(".py") else runpy.run_module
    options = {} if command[0].endswith(".py") else {"alter_sys": True}
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            run(command[0], run_name="__main__", **options)
    except SystemExit as end:
        status = end.code
    print(json.dumps([status, output.getvalue(), errors.getvalue()]))
"""


class Done(NamedTuple):
    """Exit status and what was printed."""

    status: int
    output: str
    errors: str


def run_commands(commands: Sequence[Sequence[str]]) -> list[Done]:
    """Run scripts (`name.py`) and modules with their arguments from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return [Done(*json.loads(line)) for line in done.stdout.splitlines()]
