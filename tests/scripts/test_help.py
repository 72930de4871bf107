"""medsora.training.command_line, medsora.training.stage1.command, medsora.training.stage2.command: `--help`
of every script is complete: each option has its sentence, and the exit statuses are named.
"""

from __future__ import annotations

import re

import pytest

from tests.support.commands import Done, run_commands

HELP = (
    ("train_vae.py",),
    ("train_dit.py",),
    ("sample_ddim.py",),
    ("medsora.data", "check"),
    ("medsora.data", "phantom"),
    ("medsora.demo",),
    ("medsora", "new"),
    ("medsora", "export"),
    ("medsora.app",),
)
TRAINING = ("train_vae.py", "train_dit.py")


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, ...], Done]:
    commands = [(*command, "--help") for command in HELP]
    commands += [(script, "--config", "configs/phantom.yaml", "data.framse=3") for script in TRAINING]
    commands += [(script, "--config", "configs/phantom.yaml", "--time-limit", "soon") for script in TRAINING]
    names = [*HELP, *((script, kind) for kind in ("key", "limit") for script in TRAINING)]
    return dict(zip(names, run_commands(commands), strict=True))


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_explains_every_option(command: tuple[str, ...], done: dict[tuple[str, ...], Done]) -> None:
    status, page, _ = done[command]
    assert status == 0
    assert page.startswith("usage: ")
    options = re.findall(r"^  (--[a-z-]+)", page, flags=re.MULTILINE)
    assert options or "key=value" in page
    if command[0].endswith(".py"):
        assert "75" in page


@pytest.mark.parametrize("script", TRAINING)
def test_bad_input_is_one_sentence_and_status_2(script: str, done: dict[tuple[str, ...], Done]) -> None:
    status, _, errors = done[script, "key"]
    assert status == 2
    assert errors.strip() == (
        "error: the command line: there is no key 'data.framse'; did you mean 'data.frames'?"
    )


@pytest.mark.parametrize("script", TRAINING)
def test_a_time_limit_that_is_no_number_is_told_in_words(
    script: str, done: dict[tuple[str, ...], Done]
) -> None:
    status, _, errors = done[script, "limit"]
    assert status == 2
    assert errors.endswith("--time-limit: must be a number of minutes greater than 0, not soon\n")
