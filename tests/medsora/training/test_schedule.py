"""The two phases of §4.1, and that every process sees its share of the same samples."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from medsora.config.schema import DenoiserTrainingConfig, PhaseConfig, VaeTrainingConfig
from medsora.errors import BadInput
from medsora.training.schedule import Schedule, StepBatches

PHASES = [PhaseConfig(1e-3, 16, 2), PhaseConfig(1e-4, 2, None)]


def schedule(clips: int = 40, **options) -> Schedule:
    return Schedule(PHASES, clips, **{"epochs": 4, "max_steps": None, **options})


def test_phases_change_batch_and_rate_after_epoch_one() -> None:
    steps = [schedule().step(number) for number in range(8)]
    assert [step.batch for step in steps] == [16] * 5 + [2] * 3
    assert [step.lr for step in steps] == [1e-3] * 5 + [1e-4] * 3
    assert [step.first_sample for step in steps] == [0, 16, 32, 48, 64, 80, 82, 84]
    assert steps[4].epoch == 1
    assert steps[5].epoch == 2


def test_an_epoch_shows_every_clip_once() -> None:
    keys = [key for batch in StepBatches(schedule(), seed=1) for key in batch]
    assert [key.number for key in keys] == list(range(4 * 40))
    for epoch in range(4):
        assert Counter(key.index for key in keys if key.epoch == epoch) == Counter(range(40))
    orders = [[key.index for key in keys if key.epoch == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 2)])
def test_processes_and_accumulation_share_each_global_batch(processes: int, accumulation: int) -> None:
    whole = schedule()
    shares = [
        list(StepBatches(whole, 3, rank=rank, processes=processes, accumulation=accumulation))
        for rank in range(processes)
    ]
    for number in range(whole.total_steps):
        micro = range(number * accumulation, (number + 1) * accumulation)
        seen = [key.number for share in shares for m in micro for key in share[m]]
        step = whole.step(number)
        assert sorted(seen) == list(range(step.first_sample, step.first_sample + step.batch))


def test_starting_later_gives_the_same_batches() -> None:
    assert list(StepBatches(schedule(), 3, start_step=7)) == list(StepBatches(schedule(), 3))[7:]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(BadInput, match="multiple of 3"):
        StepBatches(schedule(), 0, processes=3)


@pytest.mark.parametrize(("settings", "batch"), [(VaeTrainingConfig, 1), (DenoiserTrainingConfig, 2)])
def test_max_steps_alone_is_not_cut_by_a_default_of_epochs(settings: type, batch: int) -> None:
    """Neither key: the paper's epochs; one key: that one; both: whichever comes first."""

    def steps(**keys: int) -> int:
        phases = {} if settings is VaeTrainingConfig else {"phases": [PhaseConfig(1e-4, batch)]}
        return Schedule.of(settings(**phases, **keys), 40).total_steps

    default = {VaeTrainingConfig: 10, DenoiserTrainingConfig: 1000}[settings]
    assert steps() == default * 40 // batch
    assert steps(max_steps=10**6) == 10**6
    assert steps(epochs=3) == steps(epochs=3, max_steps=10**6) == 120 // batch
    assert steps(epochs=3, max_steps=7) == 7


def test_warm_up_and_cosine_end_where_the_run_ends() -> None:
    cosine = schedule(max_steps=20, warmup_steps=4, lr_decay="cosine")
    rates = [cosine.step(number).lr / (1e-3 if number < 5 else 1e-4) for number in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.02
