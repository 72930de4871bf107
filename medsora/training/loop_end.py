"""Shared parts of all training loops: their set-up, and their work between two steps, in this order.

1. Stop before the optimiser's step if a loss or gradient is not finite, after saving the state before it
   (`check_step`).
2. Log (`log_step`); the rest is `end_step`:
3. Save, if a checkpoint is due or a process must stop: what follows may take minutes, which a
   scheduler may not grant.
4. Exit, if a process must stop: this step's evaluation and samples are made up for when the run is
   resumed (`begin`).
5. Evaluate and sample, if due, on the main process. A request to stop may cut the sampling short; then every
   process leaves after this step, and it is made up for as well.
6. End training, if early stopping is on and the held-out loss no longer improves.

The last step is evaluated and sampled even if a process must stop: there is nothing left to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medsora.config.schema import Config
from medsora.errors import Interrupted
from medsora.runtime.interruption import StopRequest, any_process
from medsora.training.accelerator import set_learning_rate
from medsora.training.progress import Progress
from medsora.training.randomness import derive_seed
from medsora.training.run.early_stop import EarlyStop
from medsora.training.run.folder import RunFolder
from medsora.training.run.report import RunReport
from medsora.training.schedule import Schedule, Step, StepBatches
from medsora.training.stage_parts import StageParts
from medsora.training.step_guard import StepGuard, StepRecord


class PeriodicTask(NamedTuple):
    """Work of the main process after every `every`-th step, from `first_step` on, and after the last one.

    `is_done` returns, when a run is resumed after a step, whether the work of that step was done.
    `interruptible` work raises `Interrupted` where the request to stop cuts it short.
    """

    every: int
    work: Callable[[int, StopRequest], None]
    is_done: Callable[[int], bool]
    first_step: int = 1
    interruptible: bool = False


class Stage(Protocol):
    """The parts of a stage used between its steps: among others its checkpoint parts and its tasks."""

    config: Config
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    run: RunFolder
    schedule: Schedule
    parts: StageParts
    tasks: list[PeriodicTask]
    early_stop: EarlyStop | None


def batch_order(stage: Stage, start: int, labels: Sequence[int] | None = None) -> StepBatches:
    """Return this process's clips of every step from `start` on; `labels`, one per clip, balance them."""
    accelerator = stage.accelerator
    return StepBatches(
        stage.schedule,
        stage.config.run.seed,
        start_step=start,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=getattr(stage.config, stage.run.stage).accumulation,
        labels=labels,
    )


def watch(
    stage: Stage, start: int, stop: StopRequest, title: str, page: str
) -> tuple[Progress, RunReport, StepGuard]:
    """Return a progress bar, the run's page and a guard of its steps; give `stop` a checkpoint's size.

    The run's clock begins here.
    """
    stage.run.restart_clock()
    accelerator, total = stage.accelerator, stage.schedule.total_steps
    progress = Progress(title, total, start, show=accelerator.is_local_main_process)
    report = RunReport(stage.run, f"{stage.config.run.name}: {page}", total)
    guard = StepGuard(accelerator, stage.optimizer)
    stop.expect_checkpoint(stage.parts.size_bytes)
    stop.expect_answers_late(guard.lag)
    return progress, report, guard


def begin(stage: Stage, step: int, stop: StopRequest) -> range:
    """Run, before the first step, the tasks that a stop right after the checkpoint of `step` left undone.

    Returns the numbers of the steps to take. Raises `Interrupted` if there is no time for a step either.
    """
    if not _run_tasks(stage, step, stop, resumed=True):
        raise _interrupted(stage, step, stop)
    return range(step, step if _stops_early(stage, step, stop) else stage.schedule.total_steps)


def begin_step(
    stage: Stage, number: int, stop: StopRequest, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Step, StepRecord]:
    """Set a step's learning rate, this process's seed and training mode; return the step and its record."""
    stop.begin_step()
    step = stage.schedule.step(number)
    set_learning_rate(optimizer, step.lr)
    torch.manual_seed(derive_seed(stage.config.run.seed, "step", number, stage.accelerator.process_index))
    model.train()
    return step, StepRecord(number)


def check_step(
    stage: Stage, guard: StepGuard, record: StepRecord, norm: Tensor, stop: StopRequest
) -> tuple[bool, bool, bool]:
    """Return whether to log and to save after this step, and whether any process must stop.

    With early stopping a checkpoint is due with every evaluation. Raises `NonFiniteLoss` after saving the
    state before the first bad step and ending the training.
    """
    done, settings = record.number + 1, getattr(stage.config, stage.run.stage)
    ends = done == stage.schedule.total_steps
    logs = done % settings.log_every == 0 or ends
    evaluated = stage.early_stop is not None and done % stage.early_stop.every == 0
    saves = done % settings.save_every == 0 or ends or evaluated
    bad, stops = guard.check(record, norm, stops=stop.wanted(), at_once=logs or saves)
    if bad is not None:
        stage.parts.save(bad.number)
        stage.accelerator.end_training()
        raise bad.error(stage.run.checkpoints)
    return logs, saves, stops


def log_step(
    stage: Stage,
    done: int,
    losses: dict[str, Tensor],
    state: dict[str, float],
    progress: Progress,
    report: RunReport,
) -> None:
    """Log the losses, means over all processes, and the state of the loop after `done` steps, with its speed.

    The speed is that since the last call.
    """
    means = stage.accelerator.reduce(torch.stack([*losses.values()]).float(), reduction="mean").tolist()
    metrics = {f"loss/{name}": mean for name, mean in zip(losses, means, strict=True)}
    speed = progress.speed()
    stage.run.log(done, {**metrics, **state, **speed})
    progress.show(metrics, speed)
    report.update()
    progress.restart_clock()


def end_step(
    stage: Stage, done: int, stop: StopRequest, progress: Progress, *, saves: bool, stops: bool
) -> bool:
    """Save, leave, evaluate and sample after `done` steps; return whether early stopping ends training.

    Raises `Interrupted` after saving if a process must stop (`stops`), or receives a signal while it samples.
    """
    if saves or stops:
        with stop.saving():
            stage.parts.save(done)
    with progress.not_training():
        leaves = stops and done < stage.schedule.total_steps
        if leaves or not _run_tasks(stage, done, stop):
            raise _interrupted(stage, done, stop)
        evaluated = stage.early_stop is not None and done % stage.early_stop.every == 0
        return evaluated and _stops_early(stage, done, stop)


def _stops_early(stage: Stage, step: int, stop: StopRequest) -> bool:
    """Return whether early stopping ends training after `step`, once all that is due at the end is done."""
    if stage.early_stop is None or step == stage.schedule.total_steps:
        return False
    why = stage.early_stop.why() if stage.run.main else None
    (stops,) = any_process(stage.accelerator, why is not None)
    if stops:
        if not _run_tasks(stage, step, stop, resumed=True, ends=True):
            raise _interrupted(stage, step, stop)
        stage.run.notify(why or "")
    return stops


def _run_tasks(
    stage: Stage, step: int, stop: StopRequest, *, resumed: bool = False, ends: bool = False
) -> bool:
    """Run the tasks due after `step`, or at the end if it `ends` training; `resumed`: skip those done before.

    Returns False if a process was cut short or, `resumed`, must stop.
    """
    ends = ends or step == stage.schedule.total_steps
    due = [task for task in stage.tasks if step >= task.first_step and (step % task.every == 0 or ends)]
    cut_short = False
    if stage.run.main:
        try:
            for task in due:
                if not (resumed and task.is_done(step)):
                    task.work(step, stop)
        except Interrupted:
            cut_short = True
    if not resumed and not any(task.interruptible for task in due):
        return True  # nothing could have been cut short: no process waits for the others
    (leaves,) = any_process(stage.accelerator, cut_short or (resumed and stop.wanted()))
    return not leaves


def _interrupted(stage: Stage, step: int, stop: StopRequest) -> Interrupted:
    """Save if necessary and end the training; return the exception to raise."""
    stage.parts.save(step)
    stage.accelerator.end_training()
    return Interrupted(f"{stop.why()}; saved after step {step}; run the same command to resume.")
