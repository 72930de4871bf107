"""A loss or gradient that is NaN or infinite: the run stops before it reaches the weights, and reports where.

A GPU runs ahead while the host reads the result of the step before: until then the device itself
leaves the weights as they were (`found_inf` of PyTorch's fused optimisers). On a CPU the check is immediate.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from medsora.errors import NonFiniteLoss

LAG = {"cuda": 1}  # maximum lag of the host's check in steps; 0 on other devices
MIN_SCALE = 2.0**-10  # fp16's loss scale begins at 2^16; below this, a smaller one does not help


class StepRecord:
    """Clips and loss of each micro-batch of one optimiser step, which an error names."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.losses: list[Tensor] = []
        self.clips: list[list[str]] = []
        self.gradient_norm = torch.tensor(math.nan)

    def add(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Note a micro-batch: its loss, its clips' names and, where there are any, their timesteps."""
        names = batch["name"]
        if "t" in batch:
            names = [f"{name} (timestep {t})" for name, t in zip(names, batch["t"].tolist(), strict=True)]
        self.losses.append(loss.detach())
        self.clips.append(names)

    def error(self, saved: Path) -> NonFiniteLoss:
        """Return what to raise after saving; all processes call it. If all losses are finite it names all."""
        pairs = zip(self.losses, self.clips, strict=True)
        gathered = gather_object([(float(loss), name) for loss, names in pairs for name in names])
        bad = [(loss, name) for loss, name in gathered if not math.isfinite(loss)]
        norm = float(self.gradient_norm)
        what = f"the loss became {bad[0][0]}" if bad else f"the gradients' norm became {norm}"
        names = ", ".join(name for _, name in bad or gathered)
        return NonFiniteLoss(
            f"{what} at step {self.number} on {names}; the state before that step is saved in {saved}."
        )


class StepGuard:
    """Checks before each optimiser update whether the step is finite and whether any process must stop.

    `optimizer` is the loop's own, before `Accelerator.prepare`; only a fused one allows a lag.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator, self.optimizer = accelerator, optimizer
        self.scaled = accelerator.scaler is not None  # by fp16's scaler, which leaves out steps that overflow
        fused = optimizer.defaults.get("fused")  # others do not read `found_inf`
        self.lag = LAG.get(accelerator.device.type, 0) if fused and not self.scaled else 0
        self.bad = torch.zeros((), device=accelerator.device)  # 1 from the first bad step on, in any process
        self._unread: deque[tuple[StepRecord, Tensor, torch.cuda.Event | None]] = deque()

    def check(
        self, record: StepRecord, norm: Tensor, *, stops: bool, at_once: bool
    ) -> tuple[StepRecord | None, bool]:
        """Return the first bad step that is known, if there is one, and whether any process must stop.

        All processes return the same, of the step `self.lag` before this one, or of this one if `at_once`
        (set by all alike). Call it before the optimiser's step, which after a bad one changes nothing.
        """
        record.gradient_norm = norm
        # fp16's scaler tries out which scale makes gradients overflow, and leaves out those steps itself.
        tries = self.scaled and self.accelerator.scaler.get_scale() >= MIN_SCALE
        values = [loss.float() for loss in record.losses] + ([] if tries else [norm.float()])
        bad = 1 - torch.isfinite(torch.stack(values)).all().float()
        flags = torch.stack([bad, torch.full_like(bad, float(stops))])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        self.bad = torch.maximum(self.bad, flags[0].clamp(max=1))
        if self.lag:
            self.optimizer.found_inf = self.bad
        self._unread.append((record, *_copied_to_host(flags)))

        any_stops = stops and self.accelerator.num_processes == 1
        while len(self._unread) > (0 if at_once or any_stops else self.lag):
            unread, flags, arrived = self._unread.popleft()
            if arrived is not None:
                arrived.synchronize()
            bad, others = flags.tolist()
            if bad:
                return unread, False
            any_stops = any_stops or others > 0
        return None, any_stops


def _copied_to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start a copy to the host's memory; return it, and the event that ends it, None if it is complete."""
    if flags.device.type != "cuda":
        return flags, None
    there = torch.empty_like(flags, device="cpu", pin_memory=True)
    there.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return there, arrived
