"""The accelerator of the training loops: precision, gradients, loss scaling."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from medsora.config.load import config_to_dict
from medsora.config.schema import STAGE_AR, Config
from medsora.data.clips import ClipDataset
from medsora.denoiser.linear import bf16_problem
from medsora.errors import BadInput
from medsora.runtime.malloc import keep_freed_memory
from medsora.runtime.processes import check_agreement, join_group, start_heartbeat
from medsora.training.randomness import derive_seed
from medsora.training.run.folder import RunFolder
from medsora.training.run.trackers import usable_trackers

log = logging.getLogger(__name__)

# Settings of `accelerate launch` that the loops do not follow: variable -> its name, what to do instead.
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "launch without it"),
    "ACCELERATE_USE_FSDP": ("FSDP", "launch without it"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "launch without it"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config", "launch without it"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", "set accumulation in the config"),
    "ACCELERATE_DYNAMO_BACKEND": ("a dynamo backend", "set train_dit.compile in the config"),
    "ACCELERATE_DOWNCAST_BF16": ("downcasting to bf16", "set precision in the config"),
    "XLA_DOWNCAST_BF16": ("downcasting to bf16", "set precision in the config"),
    "ACCELERATE_MIXED_PRECISION": ("mixed precision", "set precision in the config"),
}
OFF = {"", "0", "no", "none", "false"}  # values, in lower case, that mean "not set"


def make_accelerator(config: Config, stage: str) -> Accelerator:
    """Return accelerate's `Accelerator` for a stage, and seed the models' initialisation, which follows.

    Gradients are accumulated by the loops themselves. Raises `BadInput` as `check_precision` and
    `check_launcher` do.
    """
    precision, run = getattr(config, stage).precision, config.folder(stage)
    check_launcher(precision)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    keep_freed_memory()
    torch.manual_seed(derive_seed(config.run.seed, "initialisation"))
    join_group()
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
    """Raise `BadInput` for a precision that the device lacks; warn of bf16 that a CPU only emulates.

    fp16 needs the loss scaling of a CUDA GPU (on a CPU accelerate would quietly train in float32), bf16 on
    MPS needs macOS 14.
    """
    device = PartialState().device.type
    if precision == "bf16" and device == "cpu" and (problem := bf16_problem(PartialState().device)):
        log.warning("the precision bf16 may make a step several times slower than no does: %s.", problem)
    if precision == "fp16" and device != "cuda":
        raise BadInput(
            f"the precision fp16 needs a GPU with CUDA, but this run is on {device}: choose no or bf16."
        )
    if precision == "bf16" and device == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise BadInput("the precision bf16 on MPS needs macOS 14 or newer: choose no.")


def check_compile() -> None:
    """Raise `BadInput` where `train_dit.compile` is not supported: anywhere but on a GPU with Triton."""
    if (device := PartialState().device.type) != "cuda":
        raise BadInput(
            f"train_dit.compile needs a GPU with Triton, but this run is on {device}: leave it off."
        )


def check_launcher(precision: str) -> None:
    """Raise `BadInput` for a setting of `accelerate launch` that the loops do not follow.

    Mixed precision passes where it is the config's `precision`, gradient accumulation where it is one step.
    """
    same = {"ACCELERATE_MIXED_PRECISION": precision, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    for variable, (name, remedy) in UNSUPPORTED.items():
        value = os.environ.get(variable, "").strip().lower()
        if value not in OFF and value != same.get(variable):
            raise BadInput(
                f"accelerate is set to use {name} ({variable}={value}), which training does not take "
                f"from the launcher; {remedy}, or undo it in 'accelerate config' and on the command line."
            )


def check_same_run(run: RunFolder, config: Config, clips: ClipDataset) -> None:
    """Raise `BadInput` unless every process has the same folder, configuration and clips."""
    cached = run.stage == STAGE_AR or config.cache.latents == "disk"
    names = [(clips.videos[video].source.name, window.start) for video, window in clips.windows]
    check_agreement(
        {
            "run folder": os.path.abspath(run.path),
            "cache folder": os.path.abspath(config.cache.dir) if cached else None,
            "configuration": _short_digest(config_to_dict(config)),
            "number of clips": len(clips),
            "list of clips": _short_digest(names),
        }
    )


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products, as `torch.set_float32_matmul_precision`, in a context.

    On a GPU "high" and "medium" multiply in TF32. On a CPU "medium" hands products to oneDNN and allows it to
    multiply in bf16, which it does on processors with AMX; on others, bf16 instructions or not, products
    stay in float32.
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


def clipped_norm(accelerator: Accelerator, model: torch.nn.Module, largest: float | None) -> torch.Tensor:
    """Return the norm of all gradients, unscaled under fp16, after clipping it to `largest` if given."""
    return accelerator.clip_grad_norm_(model.parameters(), math.inf if largest is None else largest)


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the state of fp16's loss scaler as JSON values; None in other precisions."""
    return accelerator.scaler.state_dict() if accelerator.scaler else None


def restore_scaler(accelerator: Accelerator, state: dict[str, Any] | None) -> None:
    """Restore the state that `scaler_state` returned."""
    if accelerator.scaler and state:
        accelerator.scaler.load_state_dict(state)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _short_digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:12]
