"""Train a small vision transformer on flow pictures by DINO's objective; the step loop is `train_dino`.

The recipe is DINO's, for a short run: AdamW with a warm-up and cosine decay, weight decay that grows, a
teacher whose momentum grows to 1, and prototypes that are frozen in the first steps.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medsora.errors import BadInput, Interrupted
from medsora.flow_prior.dino import build_network
from medsora.flow_prior.weights import load_strictly
from medsora.runtime.files import make_folder
from medsora.runtime.interruption import StopRequest
from medsora.runtime.progress_bar import progress_bar
from medsora.saved.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from medsora.saved.optimizer import optimizer_tensors, read_tensors, restore_optimizer
from medsora.training.dino.objective import (
    LARGE_AREA,
    LARGE_CROPS,
    SMALL_AREA,
    SMALL_CROPS,
    DinoLoss,
    ProjectionHead,
    random_crops,
)
from medsora.training.dino.pictures import FlowPictures, as_pictures
from medsora.training.randomness import derive_seed, generator_for
from medsora.training.run.folder import hold_folder

WARMUP, FROZEN_PROTOTYPES = 0.1, 0.05  # share of the steps
CLIP_NORM = 3.0
SAVE_EVERY, LOG_EVERY, KEEP = 100, 20, 2


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training."""

    steps: int = 3000
    batch: int = 32
    lr: float = 1e-3
    crop: int = 64  # side of large crops in pixels
    small_crop: int = 32  # pixels per side of a small crop
    momentum: float = 0.99  # the teacher's in the first step; it grows to 1 by half a cosine
    decay: tuple[float, float] = (0.04, 0.2)  # weight decay in the first and in the last step
    seed: int = 0


class StudentAndTeacher(nn.Module):
    """Two encoders with heads of one kind, the loss with its centre, and the student's optimiser."""

    def __init__(self, architecture: str, recipe: Recipe) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "weights"))
            encoder = build_network(architecture)
            self.student = nn.ModuleDict({"encoder": encoder, "head": ProjectionHead(encoder.num_features)})
        self.teacher = deepcopy(self.student)
        self.teacher.requires_grad_(False).eval()
        self.loss = DinoLoss()
        statistics = timm.data.resolve_model_data_config(encoder)
        self.register_buffer("mean", torch.tensor(statistics["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(statistics["std"]).view(3, 1, 1), persistent=False)

    def loss_of(self, large: list[Tensor], small: list[Tensor]) -> Tensor:
        """Return DINO's loss of the crops of one batch; every size is one pass."""
        with torch.no_grad():
            wanted = self._scores(self.teacher, large)
        return self.loss(self._scores(self.student, large) + self._scores(self.student, small), wanted)

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        for kept, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            kept.lerp_(new, 1 - momentum)

    def write(self, folder: Path) -> None:
        """Write all weights into a checkpoint's folder."""
        make_folder(folder)
        save_file(self.state_dict(), folder / "both.safetensors")

    def _scores(self, network: nn.ModuleDict, crops: list[Tensor]) -> list[Tensor]:
        scores = network["head"](network["encoder"]((torch.cat(crops) - self.mean) / self.std))
        return list(scores.chunk(len(crops)))


def train_dino(
    pictures: FlowPictures,
    architecture: str,
    recipe: Recipe,
    run: Path,
    *,
    time_limit_minutes: float | None = None,
) -> dict[str, Tensor]:
    """Train in the folder `run`, resuming from its last checkpoint; return the teacher's encoder.

    Raises `BadInput` if the folder holds a run of another recipe, `Interrupted` after saving.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stop = StopRequest(time_limit_minutes)
    make_folder(run)
    with hold_folder(run), stop.preparing():
        both = StudentAndTeacher(architecture, recipe).to(device)
        optimizer, names = _optimizer(both)
        settings = {
            **asdict(recipe),
            "decay": list(recipe.decay),
            "architecture": Path(architecture).read_text(encoding="utf-8"),
        }
        start = _resume(latest_checkpoint(run, print), both, optimizer, names, settings)
        bar = progress_bar("DINO", total=recipe.steps, initial=start, unit="step")
        with stop, bar:
            for number in range(start, recipe.steps):
                stop.begin_step()
                loss = _step(both, optimizer, pictures, recipe, number, device)
                done = number + 1
                stops = stop.wanted()
                if done % LOG_EVERY == 0 or done == recipe.steps:
                    if not math.isfinite(value := float(loss)):
                        raise BadInput(f"the loss is {value} after step {done}: take a smaller --lr.")
                    bar.set_postfix_str(f"loss={value:.3f}", refresh=False)
                bar.update()
                if stops or done % SAVE_EVERY == 0 or done == recipe.steps:
                    with stop.saving():
                        tensors, state = optimizer_tensors(optimizer, names), {"recipe": settings}
                        save_checkpoint(run, done, both.write, tensors, state, keep=KEEP)
                if stops and done < recipe.steps:
                    raise Interrupted(
                        f"{stop.why()}; saved after step {done}, run the same command to resume."
                    )
    return {name: tensor.cpu() for name, tensor in both.teacher["encoder"].state_dict().items()}


def _step(
    both: StudentAndTeacher,
    optimizer: torch.optim.Optimizer,
    pictures: FlowPictures,
    recipe: Recipe,
    number: int,
    device: torch.device,
) -> Tensor:
    draw = generator_for(recipe.seed, "dino", number)
    moving = pictures.moving.nonzero()[0]
    chosen = moving[torch.randint(len(moving), (recipe.batch,), generator=draw).sort().values.numpy()]
    batch = as_pictures(pictures.pictures[chosen]).to(device)
    large = random_crops(batch, LARGE_CROPS, recipe.crop, LARGE_AREA, draw)
    small = random_crops(batch, SMALL_CROPS, recipe.small_crop, SMALL_AREA, draw)
    progress = number / recipe.steps
    rising = 0.5 - 0.5 * math.cos(math.pi * progress)
    warmup = min(1.0, (progress + 1 / recipe.steps) / WARMUP)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * warmup * (1 - 0.999 * rising)
        group["weight_decay"] = group["decays"] * (
            recipe.decay[0] + (recipe.decay[1] - recipe.decay[0]) * rising
        )
    loss = both.loss_of(large, small)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if progress < FROZEN_PROTOTYPES:
        both.student["head"].prototypes.grad = None
    nn.utils.clip_grad_norm_(both.student.parameters(), CLIP_NORM)
    optimizer.step()
    both.average(1 - (1 - recipe.momentum) * (1 - rising))
    return loss.detach()


def _optimizer(both: StudentAndTeacher) -> tuple[torch.optim.AdamW, list[str]]:
    """Return AdamW, which decays matrices alone, and its parameters' names in its order."""
    named = list(both.student.named_parameters())
    groups = [
        [(name, parameter) for name, parameter in named if (parameter.ndim > 1) == decays]
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter for _, parameter in group], "decays": float(decays)}
            for group, decays in zip(groups, (True, False), strict=True)
        ],
        fused=True,
    )
    return optimizer, [name for group in groups for name, _ in group]


def _resume(
    checkpoint: Checkpoint | None,
    both: StudentAndTeacher,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    settings: dict[str, object],
) -> int:
    if checkpoint is None:
        return 0
    recipe_before = checkpoint.value("recipe", dict)
    for name, value in settings.items():
        if recipe_before.get(name) != value:
            raise BadInput(
                f"{checkpoint.folder.parent} holds a run with {name} {recipe_before.get(name)!r}, but now it "
                f"is {value!r}: put it back, or take another folder."
            )
    weights = checkpoint.folder / "both.safetensors"
    load_strictly(both, read_tensors(weights), weights, "student and teacher")
    restore_optimizer(optimizer, names, checkpoint.folder / "optimizer.safetensors")
    return checkpoint.step
