"""The progress line: step, losses, speed, waiting for data, memory, remaining time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from medsora.runtime.progress_bar import progress_bar
from medsora.training.schedule import UNLIMITED_STEPS


class Progress:
    """A progress bar over optimiser steps, used as a context, that also keeps metrics of speed and memory."""

    def __init__(self, title: str, total_steps: int, start_step: int, *, show: bool) -> None:
        total = total_steps if total_steps < UNLIMITED_STEPS else None
        self.bar = progress_bar(title, total=total, initial=start_step, unit="step", show=show)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin a new interval for `speed`."""
        self.began, self.waited, self.samples = time.perf_counter(), 0.0, 0

    def count(self, samples: int, waited_s: float) -> None:
        """Note one finished optimiser step of `samples` clips that waited `waited_s` seconds for its data."""
        self.samples += samples
        self.waited += waited_s
        self.bar.update()

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Leave the time spent on samples and evaluations out of `speed`, but not of the remaining time."""
        paused = time.perf_counter()
        yield
        self.began += time.perf_counter() - paused

    def speed(self) -> dict[str, float]:
        """Return samples/s, share of waiting for data (0..1) and GiB since the last `restart_clock`."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        on_gpu = torch.cuda.is_available()
        used = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        return {
            "speed/samples_per_s": self.samples / seconds,
            "speed/data_wait": self.waited / seconds,
            "speed/memory_gib": used / 2**30,
        }

    def show(self, losses: dict[str, float], speed: dict[str, float]) -> None:
        """Show losses and what `speed` returned behind the bar, which itself shows step and remaining time.

        A loss of exactly 0 is one that is left out.
        """
        parts = " ".join(f"{key.split('/')[-1]}={value:.3g}" for key, value in losses.items() if value)
        self.bar.set_postfix_str(
            f"{parts} | {speed['speed/samples_per_s']:.3g} samples/s, "
            f"{speed['speed/data_wait']:.0%} waiting for data, {speed['speed/memory_gib']:.1f} GiB",
            refresh=False,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()  # ends the line, so that a message or an error begins its own
