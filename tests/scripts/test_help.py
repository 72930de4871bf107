"""medsora.training.command_line, medsora.training.stage1.command, medsora.training.stage2.command: `--help`
of every script is complete: each option has its sentence, and the exit statuses are named.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

COMMANDS = (
    ("train_vae.py",),
    ("train_dit.py",),
    ("sample_ddim.py",),
    ("-m", "medsora.data", "check"),
    ("-m", "medsora.data", "phantom"),
    ("-m", "medsora.demo"),
    ("-m", "medsora", "new"),
    ("-m", "medsora", "export"),
    ("-m", "medsora.app"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_option(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    options = re.findall(r"^  (--[a-z-]+)", done.stdout, flags=re.MULTILINE)
    assert options or "key=value" in done.stdout
    if command[0].endswith(".py"):
        assert "75" in done.stdout


@pytest.mark.parametrize("script", ["train_vae.py", "train_dit.py"])
def test_bad_input_is_one_sentence_and_status_2(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--config", "configs/phantom.yaml", "data.framse=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: the command line: there is no key 'data.framse'; did you mean 'data.frames'?"
    )
