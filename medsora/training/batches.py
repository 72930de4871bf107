"""A process's stream of micro-batches: the loader, its workers, and the time spent waiting for them."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medsora.data.clips import ClipDataset
from medsora.data.reading.memory import share_with_loaders
from medsora.errors import BadInput
from medsora.runtime.malloc import hand_back_freed_memory
from medsora.runtime.processes import BATCH_TIME_LIMIT_S
from medsora.training.randomness import chance_for
from medsora.training.schedule import SampleKey, StepBatches


class NumberedClips(Dataset):
    """A clip dataset read by `SampleKey`; each item carries its global sample number as `sample`."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {**self.clips[key.epoch, key.index], "sample": key.number}


def label_of_sample(clips: ClipDataset, key: SampleKey, seed: int, dropout: float) -> int:
    """Return a sample's label or, in the share `dropout` of all samples, the number that means none."""
    if chance_for(seed, "label dropout", key.number) < dropout:
        return len(clips.labels.names)
    return clips.label(key.index)


class TimedBatches:
    """Iterates over a process's micro-batches and adds up the seconds spent waiting for them."""

    def __init__(
        self,
        dataset: Dataset,
        batches: StepBatches,
        workers: int,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    ) -> None:
        self._kept = ExitStack()
        start = None
        if workers:
            folder = self._kept.enter_context(tempfile.TemporaryDirectory(prefix="medsora-loaders-"))
            start = partial(_quiet_worker, Path(folder, "lock"), workers)
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            timeout=BATCH_TIME_LIMIT_S if workers else 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start,
        )
        self.batches: Iterator[dict[str, Any]] = iter(self.loader)
        self._waited_s = 0.0

    def __enter__(self) -> TimedBatches:
        return self

    def __exit__(self, *stopped: object) -> None:
        # End the workers here: a pending exception's traceback would keep them alive, and exit handlers would
        # wait for processes that ignore SIGTERM (see `_quiet_worker`). PyTorch signals them to end and waits
        # for seconds; one that still decodes only reads, so killing it loses nothing.
        ended, self.batches = self.batches, iter(())
        workers = getattr(ended, "_workers", [])
        try:
            if workers:
                ended._shutdown_workers()
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
            self._kept.close()

    def next(self) -> dict[str, Any]:
        """Return the next micro-batch.

        Raises `BadInput` if the clips are gone, and `RuntimeError` if a worker has ended, which
        `reporting_lost_processes` turns into one sentence.
        """
        began = time.perf_counter()
        try:
            batch = next(self.batches)
        except BadInput as error:  # from a worker, whose traceback PyTorch writes before the message
            raise BadInput(str(error).strip().rpartition("BadInput: ")[2]) from error
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("a DataLoader worker ended while it handed a batch over") from error
        self._waited_s += time.perf_counter() - began
        return batch

    def waited(self) -> float:
        """Return the seconds waited since the last call."""
        seconds, self._waited_s = self._waited_s, 0.0
        return seconds


def _quiet_worker(memory_lock: Path, workers: int, worker: int) -> None:
    """Use one thread and ignore Ctrl-C, which reaches all processes: the loop needs batches for its step."""
    torch.set_num_threads(1)
    hand_back_freed_memory()
    share_with_loaders(memory_lock, workers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; to a GPU through pinned memory, so that the host need not wait."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
