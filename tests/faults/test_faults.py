"""One of each fault in small: `python -m tests.faults`, whose long runs docs/reliability.md tells of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest

from medsora.config.load import load_config
from medsora.errors import bad_input_from_errors
from medsora.runtime.files import read_patiently, write_bytes
from tests.faults.guarded import no_sentence_of_ours
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

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
SCENARIOS = (
    "every-script",
    "uneven-epochs",
    "another-number",
    "evaluation-interrupted",
    "evaluation-dies",
    "disagree",
)
WITHIN = f"--within; {PATIENCE_S / 2:.0f}"


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
        f"kill; --times; 6; --stages; vae; --processes; 1; 1; 2; --where; {'; '.join(PLACES)}; {WITHIN}",
        f"together; --processes; 2; {WITHIN}; --only; {'; '.join(SCENARIOS)}",
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
    assert "uneven-epochs, 2 processes: 5 clips in batches of 2: each exactly once in each of 4" in printed
    assert "another-number, 2 processes: resumed with 1, which is announced" in printed
    assert re.search(r"disagree, 2 processes: error: process \d has another configuration than", printed)


@pytest.mark.parametrize(
    ("refuse", "found"),
    [
        (lambda: load_config("no-such-config.yaml"), None),
        (lambda: json.loads("{"), "a library's words"),
        (lambda: int("what a library says of it"), "a library's words"),
        (lambda: write_bytes(Path("/dev/null/x"), b""), None),
        (lambda: read_patiently(Path.read_bytes, Path("no-such-file")), "no clear line"),
    ],
)
def test_a_refusal_is_a_sentence_of_our_own(refuse: Callable[[], object], found: str | None) -> None:
    """A library's `ValueError` is none, even where `bad_input_from_errors` makes a `BadInput` of it."""
    for context in (nullcontext(), bad_input_from_errors()):
        with pytest.raises((ValueError, OSError)) as caught, context:
            refuse()
        problem = no_sentence_of_ours(caught.value)
        assert problem is None if found is None else problem.startswith(found)


def test_reads_that_fail_rename_and_restart_nothing() -> None:
    printed = faults("failed-reads; --times; 4")
    assert re.search(r"vae: \d+ reads.*\ndit: \d+ reads", printed)
    assert "failed reads: 8; renamed, restarted or lost: nothing" in printed


def test_mutated_input_is_refused_in_a_sentence_or_read() -> None:
    printed = faults(*(f"fuzz-{kind}; --inputs; 60" for kind in ("video", "config", "checkpoint")))
    assert printed.count("tried: 60") == 3
    shares = re.findall(r"got past the parser: \d+ \((\d+)%\)", printed)
    assert len(shares) == 3
    assert all(int(share) >= 30 for share in shares), printed


def test_models_of_strangers_and_flipped_bits_are_refused_or_change_nothing() -> None:
    printed = faults("fuzz-models; --inputs; 40", "flip-bits; --inputs; 100")
    assert "model folders tried: 40" in printed
    assert "flipped bits tried: 100" in printed
    refused = ("base", "endogen", "endora", "flow", "model", "phantom", "run", "samples", "vae", "weights")
    for kind in refused:
        assert re.search(rf"{kind}: refused: \d", printed)
    for kind in ("cache", "features", "records", "unfinished"):
        assert re.search(rf"{kind}: made anew: \d", printed)


def test_visitors_within_the_limits_are_served_and_others_refused() -> None:
    if find_spec("gradio") is None:
        pytest.skip("Gradio is not installed (pip install 'medsora[app]')")
    printed = faults("page; --clients; 2; --jobs; 3")
    assert "taken: 3; of these served: 3" in printed
    for status in (421, 403, 413, 503):
        assert f": {status}, " in printed
    assert "faults: 0" in printed
