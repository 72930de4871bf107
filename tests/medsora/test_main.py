"""`medsora COMMAND`: every command leads to a module that runs it, and bad input is one sentence."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from medsora import __main__ as command
from medsora.checkout import SCRIPTS
from medsora.errors import BadInput
from medsora.sampling.command import make_parser
from tests.support.paths import ROOT


def test_every_command_leads_to_a_module_that_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, _, summary) in command.COMMANDS.items():
        assert callable(import_module(module).main), name
        assert summary
    for words in (["new", "P", "--data", "D"], ["export", "RUN", "OUT"]):
        assert callable(import_module(command.parser().parse_args(words).work).run)
    with pytest.raises(SystemExit) as end:
        command.parser("medsora").parse_args(["--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: medsora ")
    assert all(
        re.search(rf"^ +{name}\b", page, re.MULTILINE) for name in (*command.COMMANDS, "new", "export")
    )


@pytest.mark.parametrize(("typed", "prog"), [("medsora", "medsora"), ("__main__.py", "python -m medsora")])
def test_help_of_medsora_names_no_script(
    typed: str, prog: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("new", "export", "convert", *command.COMMANDS):
        monkeypatch.setattr(sys, "argv", [f"/somewhere/{typed}", name, "--help"])
        with pytest.raises(SystemExit):
            command.main()
        page = capsys.readouterr().out
        assert page.startswith(f"usage: {prog} {name} ")
        assert not [script for script in SCRIPTS.values() if script in page], name


def test_help_of_a_script_names_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/sample_ddim.py"])
    page = " ".join(make_parser().format_help().split())
    assert page.startswith("usage: sample_ddim.py ")
    assert "'accelerate launch sample_ddim.py ...'" in page
    assert "a run folder of train_dit.py" in page


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["new"]])
def test_a_command_line_that_does_not_parse_ends_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.parser().parse_args(words)
    assert end.value.code == 2


def test_arguments_reach_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medsora", "export", "nowhere", "out"])
    with pytest.raises(BadInput, match="nowhere"):
        command.main()
    monkeypatch.setattr(sys, "argv", ["medsora", "check", "nowhere"])
    with pytest.raises(BadInput, match="nowhere"):
        command.main()


def test_running_the_command_line_ends_with_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medsora", "export", "nowhere", "out"])
    with pytest.raises(SystemExit) as end:
        command.run()
    assert end.value.code == 2
    assert "nowhere" in capsys.readouterr().err
