"""The loader's workers are gone when the loop is left, however it is left."""

from __future__ import annotations

import multiprocessing

import pytest
from torch.utils.data import Dataset

from medsora.config import PhaseConfig
from medsora.training.schedule import SampleKey, Schedule, StepBatches
from medsora.training.setup import TimedBatches


class Numbers(Dataset):
    def __getitem__(self, key: SampleKey) -> int:
        return key.number


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pending_exception_keeps_no_worker(workers: int) -> None:
    schedule = Schedule([PhaseConfig(1e-3, 2)], 4, epochs=2, max_steps=None)
    batches = TimedBatches(Numbers(), StepBatches(schedule, 0), workers)

    def interrupted_loop() -> None:
        with batches:
            assert batches.next().tolist() == [0, 1]
            assert len(multiprocessing.active_children()) == workers
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted_loop()
    assert multiprocessing.active_children() == []
