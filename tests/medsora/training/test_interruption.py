"""Time limits that are kept, signals that arrive twice, folders that two runs want."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from medsora.errors import BadInput, Interrupted
from medsora.training import dit_stage, interruption
from medsora.training.interruption import StopRequest
from medsora.training.run_lock import hold_folder
from tests.medsora.training import tiny


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interruption, "time", clock)
    return clock


def test_a_run_leaves_while_a_step_and_a_checkpoint_still_fit(clock: Clock) -> None:
    stop = StopRequest(time_limit_minutes=10)
    stop.expect_checkpoint(size_bytes=3_000_000_000)  # 30 s at the rate that is guessed
    steps = 0
    while True:
        stop.begin_step()
        clock.now += 20
        steps += 1
        if stop.wanted():
            break
        if steps == 5:
            with stop.saving():
                clock.now += 100
    assert clock.now + 20 + 100 >= 1000 + 600, "left too early"
    with stop.saving():
        clock.now += 100
    assert clock.now <= 1000 + 600, "left too late"
    assert stop.why() == "the time limit is reached"


def test_without_a_limit_nobody_leaves(clock: Clock) -> None:
    stop = StopRequest()
    clock.now += 1e9
    assert not stop.wanted()
    assert stop.why() == "another process was asked to stop"


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


def test_sampling_is_left_when_asked_and_made_up_for_later(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop while a long sampling runs: saved at once; the samples come after the resume."""
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path=str(vae_folder),
        alignment__weight=0,
        train_dit__max_steps=2,
        train_dit__sample_every=1,
        train_dit__save_every=100,
    )
    sample = dit_stage.DitStage.sample

    def asked_while_sampling(self: dit_stage.DitStage, step: int, stop: StopRequest) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, step, stop)

    with monkeypatch.context() as patch:
        patch.setattr(dit_stage.DitStage, "sample", asked_while_sampling)
        with pytest.raises(Interrupted, match="saved after step 1"):
            tiny.train("dit", config)
    samples = config.dit_dir / "samples"
    assert not samples.exists() or not list(samples.iterdir())
    tiny.train("dit", config)
    assert {path.name for path in samples.glob("*.png")} == {"step-0000001.png", "step-0000002.png"}


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    held, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        kept = hold_folder(tmp_path)
        os.write(done, str(kept.fileno()).encode())
        signal.pause()
    os.read(held, 1)
    try:
        with pytest.raises(BadInput, match=rf"is in use by process {pid} on "):
            hold_folder(tmp_path, patience_s=0.3)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    hold_folder(tmp_path, patience_s=0.3).close()  # a killed run leaves no lock behind
