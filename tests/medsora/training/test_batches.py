"""The loader's workers are gone when the loop is left, however it is left."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import pytest
from torch.utils.data import Dataset

from medsora.config.schema import PhaseConfig
from medsora.errors import BadInput, LostProcess
from medsora.runtime.processes import reporting_lost_processes
from medsora.training.batches import TimedBatches
from medsora.training.schedule import SampleKey, Schedule, StepBatches


class Numbers(Dataset):
    def __getitem__(self, key: SampleKey) -> int:
        return key.number


class Stuck(Numbers):
    """The second batch never comes."""

    def __getitem__(self, key: SampleKey) -> int:
        while key.number >= 2:
            signal.pause()
        return super().__getitem__(key)


class Gone(Dataset):
    def __getitem__(self, key: SampleKey) -> int:
        raise BadInput("the clips cannot be read any more.")


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(), ConnectionRefusedError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_a_lost_process(error: Exception) -> None:
    """The main process asks it for the memory that the batch lies in."""

    def handed_over() -> Iterator[dict]:
        raise error
        yield {}

    schedule = Schedule([PhaseConfig(1e-3, 2)], 4, epochs=2, max_steps=None)
    with TimedBatches(Numbers(), StepBatches(schedule, 0), 0) as batches:
        batches.batches = handed_over()
        with pytest.raises(LostProcess, match="a process that loads data died"), reporting_lost_processes():
            batches.next()


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_that_are_gone_are_one_sentence_from_a_worker_too(workers: int) -> None:
    schedule = Schedule([PhaseConfig(1e-3, 2)], 4, epochs=2, max_steps=None)
    with TimedBatches(Gone(), StepBatches(schedule, 0), workers) as batches, pytest.raises(BadInput) as error:
        batches.next()
    assert str(error.value) == "the clips cannot be read any more."


@pytest.mark.parametrize(("dataset", "workers"), [(Numbers(), 0), (Numbers(), 1), (Stuck(), 1)])
def test_a_pending_exception_keeps_no_worker(dataset: Dataset, workers: int) -> None:
    schedule = Schedule([PhaseConfig(1e-3, 2)], 4, epochs=2, max_steps=None)
    others = set(multiprocessing.active_children())
    batches = TimedBatches(dataset, StepBatches(schedule, 0), workers)

    def interrupted_loop() -> None:
        with batches:
            assert batches.next().tolist() == [0, 1]
            assert len(set(multiprocessing.active_children()) - others) == workers
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted_loop()
    assert set(multiprocessing.active_children()) <= others
