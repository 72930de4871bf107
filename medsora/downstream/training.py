"""Semi-supervised training of a downstream model: the optimiser, its schedule, the EMA and the step loop."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from medsora.data.reading.pixels import frames_to_video
from medsora.errors import NonFiniteLoss
from medsora.runtime.progress_bar import progress_bar
from medsora.training.stage2.ema import Ema

PUBLISHED_EPOCHS = 20
TEST_BATCH = 16

Loss = Callable[[int, list[int], np.random.Generator], Tensor]  # step, numbers of the batch's samples
Evaluate = Callable[[int, nn.Module], None]  # step, model


@dataclass(frozen=True)
class Recipe:
    """Training settings: by default FixMatch's optimiser and constants, on small batches."""

    steps: int = 1000
    batch: int = 8  # labelled samples a step
    ratio: int = 3  # unlabelled samples for each labelled one (the paper's mu)
    learning_rate: float = 0.03
    weight_decay: float = 5e-4
    threshold: float = 0.95  # probability from which a pseudo-label counts (the paper's tau)
    align: bool = False  # divide pseudo-labels by the mean of the last batches, times the labels' frequencies
    ema: float = 0.999
    published: bool = False  # the code published with Endora: see `PUBLISHED`

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: FixMatch's cos(7πk / 16K); of the published code by epoch."""
        if self.published:
            epoch = step * PUBLISHED_EPOCHS // self.steps
            return self.learning_rate * (1 + math.cos(math.pi * epoch / PUBLISHED_EPOCHS)) / 2
        return self.learning_rate * math.cos(7 * math.pi * step / (16 * self.steps))

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch; only the published protocol has several."""
        return max(1, self.steps // PUBLISHED_EPOCHS) if self.published else self.steps


# Learning rate 0.001 · batch / 256; EMA without warm-up, which keeps 82 % of the initial weights.
PUBLISHED = Recipe(
    200, batch=4, ratio=1, learning_rate=1.5625e-5, weight_decay=0.0, align=True, published=True
)


def given_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe with what the command line sets."""
    named = {each.name: getattr(options, each.name, None) for each in fields(Recipe)}
    return Recipe(**{name: value for name, value in named.items() if value is not None})


def train(
    model: nn.Module,
    recipe: Recipe,
    seed: int,
    losses: Sequence[tuple[int, Loss]],
    evaluate: Evaluate,
    title: str = "training",
) -> None:
    """Train `model` on the sum of the losses of labelled and of unlabelled samples.

    `losses` has the number of samples and the loss of the labelled side, then of the unlabelled one; without
    samples a side has no part in the sum.
    Runs of one seed see the same labelled samples, changed alike, in the same order. `evaluate` is called
    with the averaged weights in `model` after the last step, and for a published recipe after each of its
    epochs; its supervised runs are evaluated without the average. `title` names the run in
    the progress bar. Raises `NonFiniteLoss`.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,
        nesterov=not recipe.published,
        weight_decay=recipe.weight_decay,
    )
    ema = Ema(model, recipe.ema)
    if recipe.published:
        ema.average.min_decay = recipe.ema
    sides = []
    for side, (count, loss) in enumerate(losses):
        random = np.random.default_rng((seed, side))
        batch = recipe.batch * (recipe.ratio if side else 1)
        sides += [(endless(count, random), batch, loss, random)] if count else []
    averaged = not recipe.published or losses[1][0]
    for step in progress_bar(title, range(recipe.steps), unit="step"):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        total = sum(
            loss(step, [next(rows) for _ in range(batch)], random) for rows, batch, loss, random in sides
        )
        if not torch.isfinite(total):
            raise NonFiniteLoss(
                f"the loss is {total.item()} in step {step}, seed {seed}; lower --learning-rate."
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        ema.update()
        if (step + 1) % recipe.epoch_steps == 0 or step + 1 == recipe.steps:
            model.eval()
            with ema.applied() if averaged else nullcontext():
                evaluate(step + 1, model)


def forward(model: nn.Module, clips: Sequence[np.ndarray]) -> Tensor:
    """Return the model's logits of clips or pictures, uint8 (..., h, w, 3), on its device."""
    return model(frames_to_video(np.stack(clips)).to(next(model.parameters()).device))


@torch.no_grad()
def predict(model: nn.Module, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return the logits as `forward`, some clips at a time."""
    parts = [clips[start : start + TEST_BATCH] for start in range(0, len(clips), TEST_BATCH)]
    return np.concatenate([forward(model, part).cpu().numpy() for part in parts])


def tenths(of_steps: Sequence[float]) -> list[float]:
    """Return the means of a value over each tenth of the steps."""
    return [float(part.mean()) for part in np.array_split(of_steps, 10) if len(part)]


def augmented(change: nn.Module, clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Apply a transform of torchvision to a clip or picture, all frames alike, as `random` decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**31)))
        return change(torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, -3)).movedim(-3, -1).numpy()


def endless(count: int, random: np.random.Generator) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, again and again, each time in another one."""
    while count:
        yield from random.permutation(count).tolist()
