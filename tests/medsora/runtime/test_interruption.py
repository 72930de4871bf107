"""Time limits that are kept, signals that arrive twice, folders that two runs want."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsora.errors import BadInput, Interrupted
from medsora.runtime import interruption
from medsora.runtime.interruption import StopRequest
from medsora.training.run.folder import hold_folder
from medsora.training.stage1 import loop as vae_loop
from medsora.training.stage2 import loop as dit_loop
from medsora.training.stage2 import stage as dit_stage
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT


class Clock:
    """A clock that advances on command."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interruption, "time", clock)
    return clock


@pytest.mark.parametrize("save_every", [1, 5, 1000])
def test_a_run_leaves_while_a_step_a_look_and_a_checkpoint_still_fit(clock: Clock, save_every: int) -> None:
    """Steps of 20 s, every 7th followed by an evaluation of 50 s; checkpoints take 100 s."""
    over = clock.now + 3600
    with StopRequest(time_limit_minutes=60) as stop:
        stop.expect_checkpoint(size_bytes=10_000_000_000)  # 100 s at the rate that is guessed
        clock.now += 50
        steps = 0
        while not stop.wanted():
            if steps and steps % save_every == 0:
                with stop.saving():
                    clock.now += 100
            if steps and steps % 7 == 0:
                clock.now += 50
            stop.begin_step()
            clock.now += 20
            steps += 1
    assert clock.now + 100 + 50 + 20 + 100 >= over, "left too early"
    assert clock.now + 100 <= over, "left too late"
    assert stop.why() == "the time limit is reached"


def test_a_limit_that_is_over_before_the_first_step() -> None:
    """Before anything is prepared, or while it is: by an alarm, which is off and forgotten afterwards."""
    before = signal.getsignal(signal.SIGALRM)
    reached = pytest.raises(KeyboardInterrupt, match="the time limit is reached")
    with reached, StopRequest(time_limit_minutes=0).preparing():
        pytest.fail("there is nothing to prepare for")
    with reached, StopRequest(time_limit_minutes=60).preparing():
        left_s, every_s = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left_s <= 3600
        assert every_s == 0
        signal.raise_signal(signal.SIGALRM)
    with StopRequest(time_limit_minutes=60).preparing():
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_no_step_is_taken_that_does_not_fit(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over when the run has prepared itself: saved, and nothing is lost by starting again."""
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder), alignment__weight=0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interruption, "BYTES_SAVED_PER_S", 1e-3)  # a checkpoint would take days
    train = vae_loop.train_vae if stage == "vae" else dit_loop.train_dit
    with pytest.raises(Interrupted, match="the time limit is reached; saved after step 0"):
        train(config, time_limit_minutes=600)
    logged = tiny.log_lines(config.vae_dir if stage == "vae" else config.dit_dir)
    assert not [line for line in logged if "loss/total" in line]


def test_without_a_limit_nobody_leaves(clock: Clock) -> None:
    stop = StopRequest()
    clock.now += 1e9
    assert not stop.wanted()
    assert stop.why() == "another process received a stop request"


@pytest.fixture
def sigint_is_heard() -> Iterator[None]:
    """A process started in the background of a shell script ignores SIGINT from its birth on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_is_heard")
def test_one_wish_may_arrive_twice_but_a_second_one_counts(clock: Clock) -> None:
    def impatient() -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wanted()
            assert stop.reason == "received SIGINT"
            clock.now += 5
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        impatient()


def test_sampling_is_left_on_a_stop_signal_and_made_up_for_later(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop while a long sampling runs: saved at once; the samples come after the resume."""
    monkeypatch.chdir(tmp_path)
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path=str(vae_folder),
        alignment__weight=0,
        train_dit__max_steps=2,
        train_dit__sample_every=1,
        train_dit__save_every=100,
    )
    sample = dit_stage.Stage2.sample

    def asked_while_sampling(self: dit_stage.Stage2, step: int, stop: StopRequest) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sample(self, step, stop)

    with monkeypatch.context() as patch:
        patch.setattr(dit_stage.Stage2, "sample", asked_while_sampling)
        with pytest.raises(Interrupted, match="saved after step 1"):
            tiny.train("dit", config)
    samples = config.dit_dir / "samples"
    assert not samples.exists() or not list(samples.iterdir())
    tiny.train("dit", config)
    assert {path.name for path in samples.glob("*.png")} == {"step-0000001.png", "step-0000002.png"}


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from medsora.training.run.folder import hold_folder\n"
        "kept = hold_folder(Path(sys.argv[1])); print('held', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(BadInput, match=rf"is in use by process {other.pid} on "):
                hold_folder(tmp_path, patience_s=0.3)
        finally:
            other.kill()
    hold_folder(tmp_path, patience_s=0.3).close()  # a killed run leaves no lock behind


def test_answers_that_come_a_step_late_are_allowed_for(clock: Clock) -> None:
    for late, leaves_after in ((0, 60 - 20), (1, 60 - 40)):
        began = clock.now
        stop = StopRequest(time_limit_minutes=1)
        stop.expect_answers_late(late)
        while not stop.wanted():
            stop.begin_step()
            clock.now += 20
        assert clock.now - began == leaves_after
