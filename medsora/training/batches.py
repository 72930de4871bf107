"""What both training loops build first: the accelerator, the seed, the stream of batches."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch.utils.data import DataLoader, Dataset

from medsora.config.load import config_to_dict
from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.errors import BadInput
from medsora.runtime.malloc import hand_back_freed_memory, keep_freed_memory
from medsora.runtime.together import BATCH_TIME_LIMIT_S, check_agreement, join, start_heartbeat
from medsora.training.randomness import derive_seed
from medsora.training.run.folder import RunFolder
from medsora.training.run.trackers import usable_trackers
from medsora.training.schedule import SampleKey, StepBatches


def make_accelerator(config: Config, precision: str, run: Path) -> Accelerator:
    """Return accelerate's `Accelerator`, and seed what is built next, the models' initialisation.

    Gradients are accumulated by the loops themselves. Raises `BadInput` as `check_precision` does.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    keep_freed_memory()
    torch.manual_seed(derive_seed(config.run.seed, "initialisation"))
    join()
    check_precision(precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=usable_trackers(config.tracking.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "tensorboard")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    start_heartbeat()
    return accelerator


def check_precision(precision: str) -> None:
    """Raise `BadInput` for fp16 on a CPU, where accelerate would quietly train in float32."""
    if precision == "fp16" and PartialState().device.type == "cpu":
        raise BadInput("the precision fp16 needs a GPU, but this run is on a CPU: choose no or bf16.")


def check_same_run(run: RunFolder, config: Config, clips: ClipDataset) -> None:
    """Raise `BadInput` unless every process has the same folder, configuration and clips."""
    names = [(clips.videos[video].source.name, window.start) for video, window in clips.windows]
    check_agreement(
        {
            "run folder": str(run.path),
            "configuration": _short_digest(config_to_dict(config)),
            "number of clips": len(clips),
            "list of clips": _short_digest(names),
        }
    )


class NumberedClips(Dataset):
    """A clip dataset read by `SampleKey`; each item carries its global sample number as `sample`."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {**self.clips[key.epoch, key.index], "sample": key.number}


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let float32 matrix products run at `precision` for a while, where the processor has a faster way.

    "medium" multiplies in bf16 and adds up in float32 (on a CPU without bf16 products it changes nothing).
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def gradients_synchronised(
    accelerator: Accelerator, model: torch.nn.Module, last: bool
) -> AbstractContextManager[None]:
    """Average gradients over the processes only with the last micro-batch of a step."""
    return nullcontext() if last else accelerator.no_sync(model)


class TimedBatches:
    """Iterates over a process's micro-batches and adds up the seconds spent waiting for them."""

    def __init__(
        self,
        dataset: Dataset,
        batches: StepBatches,
        workers: int,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    ) -> None:
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            timeout=BATCH_TIME_LIMIT_S if workers else 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_worker if workers else None,
        )
        self.batches: Iterator[dict[str, Any]] = iter(self.loader)
        self._waited_s = 0.0

    def __enter__(self) -> TimedBatches:
        return self

    def __exit__(self, *stopped: object) -> None:
        # Now: a pending exception's traceback would keep the workers, and the exit handlers would wait for
        # processes that do not hear SIGTERM (see `_quiet_worker`). PyTorch asks them to end and waits for
        # seconds; one that still decodes then only reads, so ending it by force loses nothing.
        ended, self.batches = self.batches, iter(())
        workers = getattr(ended, "_workers", [])
        try:
            if workers:
                ended._shutdown_workers()
        finally:
            for worker in workers:
                worker.kill()
                worker.join()

    def next(self) -> dict[str, Any]:
        """Return the next micro-batch."""
        began = time.perf_counter()
        batch = next(self.batches)
        self._waited_s += time.perf_counter() - began
        return batch

    def waited(self) -> float:
        """Return the seconds waited since the last call."""
        seconds, self._waited_s = self._waited_s, 0.0
        return seconds


def clipped_norm(accelerator: Accelerator, model: torch.nn.Module, largest: float | None) -> torch.Tensor:
    """Return the norm of all gradients, unscaled under fp16, after clipping it to `largest` if given."""
    return accelerator.clip_grad_norm_(model.parameters(), math.inf if largest is None else largest)


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the state of fp16's loss scaler as JSON values; None in other precisions."""
    return accelerator.scaler.state_dict() if accelerator.scaler else None


def restore_scaler(accelerator: Accelerator, state: dict[str, Any] | None) -> None:
    """Put back what `scaler_state` gave."""
    if accelerator.scaler and state:
        accelerator.scaler.load_state_dict(state)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _short_digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _quiet_worker(worker: int) -> None:
    """One thread, and no signals: Ctrl-C reaches all, but the loop still needs batches to finish its step."""
    torch.set_num_threads(1)
    hand_back_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
