"""Trackers of curves and pictures: TensorBoard by default, wandb or trackio by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.errors import BadInput
from medsora.training.run.folder import RunFolder

HELP = {
    "wandb": "run 'wandb login', or set WANDB_MODE=offline to keep everything in the run's folder",
    "trackio": "see its documentation",
}


def usable_trackers(names: list[str]) -> list[str]:
    """Return `names`; raises `BadInput` for one that is not installed, which accelerate does not check."""
    for name in names:
        if find_spec(name) is None:
            raise BadInput(
                f"tracking.trackers names {name}, which is not installed: pip install 'medsora[{name}]', "
                "or leave it out."
            )
    return names


def start_trackers(accelerator: Accelerator, run: RunFolder, config: Config) -> None:
    """Open the trackers once the run folder exists; raises `BadInput` for one that fails to start."""
    if not config.tracking.trackers:
        return
    tags = {"run": config.run.name, "seed": config.run.seed, "preset": config.denoiser.preset}
    title = f"{config.run.name}/{run.path.name}"
    options: dict[str, dict[str, Any]] = {
        "wandb": {"name": title, "dir": str(run.path)},
        "trackio": {"name": title},
    }
    try:
        with run.writing():
            accelerator.init_trackers(config.tracking.project, config=tags, init_kwargs=options)
    except Exception as error:
        tracker = type(error).__module__.partition(".")[0]
        if tracker not in ("wandb", "trackio"):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadInput(
            f"{tracker} cannot be started ({reason}); {HELP[tracker]}, or leave it out of tracking.trackers."
        ) from error


def show_picture(accelerator: Accelerator, name: str, picture: np.ndarray, step: int) -> None:
    """Show a uint8 (H, W, 3) picture in every tracker that shows pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [picture]}, step=step)
