"""`medsora COMMAND`: every command leads to a module that runs it, and bad input is one sentence."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from medsora import __main__ as command
from medsora.errors import BadInput


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
