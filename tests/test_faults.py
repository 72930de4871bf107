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
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
COMMANDS_OF_ONE_PROCESS = """
import sys
from tests.faults.__main__ import main
for command in sys.argv[1:]:
    sys.argv = ["tests.faults", *command.split("; ")]
    assert main() == 0, command
"""
PLACES = (
    "in a fetch",
    "in the writing of a checkpoint",
    "before an fsync",
    "after an fsync",
    "before the rename",
    "after the rename",
)


def faults(*commands: str) -> str:
    """Run commands of the harness, which must find nothing, in one process; return what they printed."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_OF_ONE_PROCESS, *commands],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_kills_and_several_processes() -> None:
    """Killed runs end as the one that nobody killed, on one process and two; scripts run on two and four."""
    printed = faults(
        f"kill; --times; 6; --stages; vae; --processes; 1; 1; 2; --where; {'; '.join(PLACES)}",
        "together; --processes; 2; --only; every-script; evaluation-interrupted; evaluation-dies",
        "together; --processes; 4; --only; every-script",
    )
    assert "kills survived: 6 of 6" in printed
    assert "lost: nothing" in printed
    for place in PLACES:
        assert f"killed {place}" in printed
    for processes in (2, 4):
        assert f"every-script, {processes} processes: train_vae, cache, train_dit, sample_ddim" in printed
    assert "evaluation-interrupted, 2 processes: status 75 and one sentence" in printed
    assert "evaluation-dies, 2 processes: the other" in printed


@pytest.mark.parametrize("fuzz", [fuzz_video, fuzz_config, fuzz_checkpoint])
def test_mutated_input_is_refused_in_a_sentence_or_read(
    fuzz: Callable[[int, int], int], capsys: pytest.CaptureFixture
) -> None:
    assert fuzz(60, 0) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "tried: 60" in printed
    assert int(re.search(r"got past the parser: \d+ \((\d+)%\)", printed)[1]) >= 30
