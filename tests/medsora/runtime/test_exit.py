"""How commands end: one sentence, the documented status, and only the main process speaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medsora.errors import BadInput, Interrupted, LostProcess, NonFiniteLoss, NonFiniteVideo
from medsora.evaluation.command import make_parser as evaluation_parser
from medsora.runtime import exit as leaving
from medsora.runtime.exit import exit_with_status
from medsora.sampling.command import make_parser as sampling_parser
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S


def raising(error: Exception) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def leave(main: Callable[[], None]) -> int:
    with pytest.raises(SystemExit) as left:
        exit_with_status(main)
    return left.value.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_sets_itself_up(number: int, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(number)
    assert leave(lambda: signal.raise_signal(number)) == 75
    err = capsys.readouterr().err
    assert err == (
        f"interrupted: received {signal.Signals(number).name}; "
        "what was saved before is intact; rerun to resume.\n"
    )
    assert signal.getsignal(number) is before


def test_ctrl_c_during_the_imports_of_a_script(tmp_path: Path) -> None:
    """Loading takes seconds; an impatient Ctrl-C then must not end in a traceback."""
    code = (
        "import signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'medsora.training.stage1.loop':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "import train_vae\n"
        "from medsora.runtime.exit import exit_with_status\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "sys.argv = ['train_vae.py', '--config', sys.argv[1]]\n"
        "exit_with_status(train_vae.main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / "configs" / "phantom.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted: received SIGINT")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BadInput("bad."), 2, "error: bad.\n"),
        (LostProcess("gone."), 1, "error: gone.\n"),
        (LostProcess("gone.", reported_elsewhere=True), 1, ""),
        (NonFiniteLoss("nan."), 1, ""),
        (NonFiniteVideo("nan."), 1, "error: nan.\n"),
        (Interrupted("stopped."), 75, ""),
    ],
)
def test_what_other_processes_report(
    error: Exception,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """What all know the main process says; bad input another one says only if the main one does not leave."""
    monkeypatch.setattr(leaving, "WAIT_FOR_MAIN_S", 0.01)
    before = [signal.getsignal(number) for number in leaving.STOP_SIGNALS]
    monkeypatch.setenv("RANK", "1")
    assert leave(raising(error)) == status
    assert capsys.readouterr().err == message
    monkeypatch.setenv("RANK", "0")
    assert leave(raising(error)) == status
    assert capsys.readouterr().err.count("\n") == 1
    assert [signal.getsignal(number) for number in leaving.STOP_SIGNALS] == before


def test_two_processes_under_torchrun_report_what_is_wrong(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(ROOT / "train_vae.py"), "--config", "nowhere.yaml"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode != 0
    assert "error: there is no config file nowhere.yaml" in done.stderr, done.stderr
    assert "BadInput" not in done.stderr, "a traceback"


def test_help_names_what_an_interruption_keeps() -> None:
    kept = {sampling_parser: "finished videos kept", evaluation_parser: "extracted features kept"}
    for make_parser, words in kept.items():
        assert f"75 interrupted ({words}, rerun to resume)" in make_parser().epilog
