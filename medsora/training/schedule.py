"""The samples, learning rate and epoch of optimiser step k: a pure function, with no state to save.

Samples are numbered over the whole run; epoch e holds the numbers [e*L, (e+1)*L) of its own permutation of
the L clips. A step takes the next `batch` numbers, so no clip is dropped at the end of an epoch or phase.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch.utils.data import Sampler

from medsora.config.schema import DenoiserTrainingConfig, PhaseConfig, TrainingConfig
from medsora.errors import BadInput
from medsora.training.randomness import derive_seed

UNLIMITED_STEPS = 10**9  # max_steps of a run that only its time limit ends


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number, first global sample, global batch size, epoch and learning rate."""

    number: int
    first_sample: int
    batch: int
    epoch: int
    lr: float


@dataclass(frozen=True)
class SampleKey:
    """One sample: its number in the run, its epoch and the clip's index in the dataset."""

    number: int
    epoch: int
    index: int


def of_total(total_steps: int) -> str:
    """Return " of ..." for a message; nothing if only a time limit ends the run."""
    return f" of {total_steps:,}" if total_steps < UNLIMITED_STEPS else ""


class Schedule:
    """The phases of §4.1 over a dataset of `clips` clips, with optional warm-up and cosine decay.

    Training ends after `epochs` or `max_steps`, whichever comes first; at most one of them is None.
    """

    def __init__(
        self,
        phases: list[PhaseConfig],
        clips: int,
        *,
        epochs: int | None,
        max_steps: int | None,
        warmup_steps: int = 0,
        lr_decay: str = "none",
    ) -> None:
        self.phases, self.clips = phases, clips
        self.warmup_steps, self.lr_decay = warmup_steps, lr_decay
        self.starts = [(0, 0)]  # (step, sample) at which each phase begins
        for phase in phases[:-1]:
            step, sample = self.starts[-1]
            steps = math.ceil(max(phase.until_epoch * clips - sample, 0) / phase.batch)
            self.starts.append((step + steps, sample + steps * phase.batch))
        ends = [] if epochs is None else [self._steps_to_sample(epochs * clips)]
        self.total_steps = min(ends if max_steps is None else [*ends, max_steps])

    @classmethod
    def of(cls, settings: TrainingConfig, clips: int) -> Self:
        """Return what a stage's settings mean for `clips` clips; only stage 2 has several phases."""
        epochs, phased = settings.epochs, isinstance(settings, DenoiserTrainingConfig)
        if epochs is None and settings.max_steps is None:
            epochs = settings.default_epochs
        return cls(
            settings.phases if phased else [PhaseConfig(settings.lr, settings.batch)],
            clips,
            epochs=epochs,
            max_steps=settings.max_steps,
            warmup_steps=settings.warmup_steps,
            lr_decay=settings.lr_decay,
        )

    def step(self, number: int) -> Step:
        """Return step `number`, counted from 0."""
        phase_number = max(i for i, (start, _) in enumerate(self.starts) if start <= number)
        phase = self.phases[phase_number]
        start, sample = self.starts[phase_number]
        first = sample + (number - start) * phase.batch
        return Step(number, first, phase.batch, first // self.clips, phase.lr * self._factor(number))

    def check_processes(self, processes: int, accumulation: int) -> None:
        """Refuse a global batch that `processes` x `accumulation` micro-batches cannot share evenly."""
        for phase in self.phases:
            if phase.batch % (processes * accumulation):
                raise BadInput(
                    f"a batch of {phase.batch} clips cannot be shared by {processes} processes with "
                    f"accumulation {accumulation}; make the batch a multiple of {processes * accumulation}."
                )

    def moved_decay(self, before: Schedule, done: int) -> str | None:
        """Return how a run of `done` steps resumed with another end than `before` decays, in one sentence.

        None if the end is the same, or nothing decays or is left to train.
        """
        old, new = before.total_steps, self.total_steps
        if self.lr_decay == "none" or old == new or done >= new:
            return None
        was, now = (each.step(min(done, each.total_steps - 1)).lr for each in (before, self))
        return (
            f"the run ends after step {new} instead of {old}, and the {self.lr_decay} decay with it: the "
            f"learning rate continues at {now:.3g} instead of {was:.3g}; the result is not bit for bit that "
            f"of a run with {new} steps from the beginning."
        )

    def _steps_to_sample(self, samples: int) -> int:
        number = 0
        for (start, first), phase in zip(self.starts, self.phases, strict=True):
            if first < samples:
                number = start + math.ceil((samples - first) / phase.batch)
        return number

    def _factor(self, number: int) -> float:
        if number < self.warmup_steps:
            return (number + 1) / self.warmup_steps
        if self.lr_decay == "cosine":
            span = max(self.total_steps - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * (number - self.warmup_steps) / span))
        return 1.0


def balanced_order(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return as many clip numbers as there are `labels`, every label equally often (to within one), shuffled.

    A rare label's clips come several times, each as often as the others of its label (to within one).
    """
    kinds = random.permutation(np.unique(labels))
    drawn = []
    for place, kind in enumerate(kinds):
        members = np.flatnonzero(labels == kind)
        wanted = (len(labels) + place) // len(kinds)
        rounds = [random.permutation(members) for _ in range(math.ceil(wanted / len(members)))]
        drawn += rounds and [np.concatenate(rounds)[:wanted]]
    return random.permutation(np.concatenate(drawn))


class StepBatches(Sampler[list[SampleKey]]):
    """One process's micro-batches from `start_step` on: contiguous slices of each step's global batch.

    `labels`, one per clip, makes every epoch's order a `balanced_order`.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
        labels: Sequence[int] | None = None,
    ) -> None:
        schedule.check_processes(processes, accumulation)
        self.schedule, self.seed, self.start_step = schedule, seed, start_step
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return (self.schedule.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        orders: dict[int, np.ndarray] = {}
        for number in range(self.start_step, self.schedule.total_steps):
            step = self.schedule.step(number)
            size = step.batch // (self.processes * self.accumulation)
            for micro in range(self.accumulation):
                first = step.first_sample + (micro * self.processes + self.rank) * size
                yield [self._key(sample, orders) for sample in range(first, first + size)]

    def _key(self, sample: int, orders: dict[int, np.ndarray]) -> SampleKey:
        epoch, position = divmod(sample, self.schedule.clips)
        if epoch not in orders:
            orders.clear()
            random = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            balanced = self.labels is not None
            orders[epoch] = (
                balanced_order(self.labels, random) if balanced else random.permutation(self.schedule.clips)
            )
        return SampleKey(sample, epoch, int(orders[epoch][position]))
