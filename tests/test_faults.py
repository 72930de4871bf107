"""One of each fault in small: `python -m tests.faults`, whose long runs docs/reliability.md tells of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fuzz_checkpoint import fuzz_checkpoint
from tests.faults.fuzz_config import fuzz_config
from tests.faults.fuzz_video import fuzz_video

ROOT = Path(__file__).resolve().parents[1]


def faults(*arguments: str) -> str:
    """Run a command of the harness, which must find nothing; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_killed_runs_end_as_the_one_that_nobody_killed() -> None:
    """In a fetch, in a save, before and after fsync and rename; on one process and on two."""
    places = (
        "in a fetch",
        "in the writing of a checkpoint",
        "before an fsync",
        "after an fsync",
        "before the rename",
        "after the rename",
    )
    printed = faults(
        "kill", "--times", "6", "--stages", "vae", "--processes", "1", "1", "2", "--where", *places
    )
    assert "kills survived: 6 of 6" in printed
    assert "lost: nothing" in printed
    for place in places:
        assert f"killed {place}" in printed


def test_four_processes_run_every_script() -> None:
    assert "one process wrote" in faults("together", "--processes", "4", "--only", "every-script")


@pytest.mark.parametrize("fuzz", [fuzz_video, fuzz_config, fuzz_checkpoint])
def test_mutated_input_is_refused_in_a_sentence_or_read(
    fuzz: Callable[[int, int], int], capsys: pytest.CaptureFixture
) -> None:
    assert fuzz(60, 0) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "tried: 60" in printed
    assert int(re.search(r"got past the parser: \d+ \((\d+)%\)", printed)[1]) >= 30
