"""FixMatch (Sohn et al., NeurIPS 2020) on clips, and what the code published with Endora does instead.

A labelled batch teaches as usual. Of each unlabelled clip a weakly changed view is classified; where the
largest probability reaches the threshold, its class is the target of a strongly changed view (Eqs. 3 and 4).
The published code takes the weak view itself as what learns, and never uses the strong one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsora.data.reading.pixels import frames_to_video
from medsora.errors import NonFiniteLoss
from medsora.training.stage2.ema import Ema

ALIGNMENT_BATCHES = 32  # the alignment divides by the mean probabilities of this many batches
MAX_SHIFT = 1 / 8  # weak view: share of a side
MAX_CUTOUT = 1 / 2  # strong view: share of a side
AUGMENT_OPERATIONS, AUGMENT_LEVELS = 2, 10  # RandAugment's N and M; each level from 1 on is drawn
PUBLISHED_SCALES_PX, PUBLISHED_EPOCHS = (256, 320), 20
TEST_BATCH = 16

Model = nn.Module
Evaluate = Callable[[int, Model], None]  # step, model


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: by default FixMatch's optimiser and constants, on small batches.

    Attributes:
        batch: labelled clips a step; `ratio` times as many unlabelled ones (the paper's mu).
        align: divide pseudo-labels by the mean of the last batches, times the labels' frequencies.
        published: the code published with Endora: see `PUBLISHED`.
    """

    steps: int = 1000
    batch: int = 8
    ratio: int = 3
    learning_rate: float = 0.03
    weight_decay: float = 5e-4
    threshold: float = 0.95
    align: bool = False
    ema: float = 0.999
    published: bool = False

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: FixMatch's cos(7πk / 16K); of the published code by epoch."""
        if self.published:
            epoch = step * PUBLISHED_EPOCHS // self.steps
            return self.learning_rate * (1 + math.cos(math.pi * epoch / PUBLISHED_EPOCHS)) / 2
        return self.learning_rate * math.cos(7 * math.pi * step / (16 * self.steps))


# Learning rate 0.001 · batch / 256; EMA without warm-up, which keeps 82 % of the initial weights.
PUBLISHED = Recipe(
    steps=200,
    batch=4,
    ratio=1,
    learning_rate=0.001 * 4 / 256,
    weight_decay=0.0,
    align=True,
    published=True,
)


def train(
    model: Model,
    labelled: Sequence[np.ndarray],
    targets: np.ndarray,
    unlabelled: Sequence[np.ndarray],
    recipe: Recipe,
    size: int,
    seed: int,
    evaluate: Evaluate,
) -> None:
    """Train `model` on clips uint8 (F, h, w, 3) and class numbers; without `unlabelled` supervised only.

    Runs of one seed see the same labelled clips, changed alike, in the same order. `evaluate` is called with
    the averaged weights in `model` after the last step, and for a published recipe after each of its epochs;
    its supervised runs are evaluated without the average. Raises `NonFiniteLoss`.
    """
    device = next(model.parameters()).device
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
    of_labelled, of_unlabelled = (np.random.default_rng((seed, side)) for side in range(2))
    labelled_rows, unlabelled_rows = (
        endless(len(labelled), of_labelled),
        endless(len(unlabelled), of_unlabelled),
    )
    weak = crop_and_flip if recipe.published else weak_view
    prior = torch.tensor(np.bincount(targets) / len(targets), dtype=torch.float32, device=device)
    seen: deque[Tensor] = deque(maxlen=ALIGNMENT_BATCHES)
    epoch_steps = max(1, recipe.steps // PUBLISHED_EPOCHS) if recipe.published else recipe.steps

    def batch_of(clips: Sequence[np.ndarray], view: Callable, random: np.random.Generator) -> Tensor:
        return torch.stack([frames_to_video(view(clip, size, random)) for clip in clips]).to(device)

    for step in range(recipe.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        rows = [next(labelled_rows) for _ in range(recipe.batch)]
        video = batch_of([labelled[row] for row in rows], weak, of_labelled)
        loss = functional.cross_entropy(model(video), torch.tensor(targets[rows], device=device))
        if len(unlabelled):
            if recipe.published and step % epoch_steps == 0:
                seen.clear()  # the published code begins its list anew in each epoch
            rows = [next(unlabelled_rows) for _ in range(recipe.ratio * recipe.batch)]
            clips = [weak(unlabelled[row], size, of_unlabelled) for row in rows]
            weak_video = torch.stack([frames_to_video(clip) for clip in clips]).to(device)
            with nullcontext() if recipe.published else torch.no_grad():
                weak_logits = model(weak_video)
            probabilities = weak_logits.detach().softmax(1)
            if recipe.align:
                seen.append(probabilities.mean(0))
                probabilities = probabilities / torch.stack(list(seen)).mean(0)
                probabilities = probabilities * (1 if recipe.published else prior)
                probabilities = probabilities / probabilities.sum(1, keepdim=True)
            sure, pseudo = probabilities.max(1)
            logits = weak_logits if recipe.published else model(batch_of(clips, strong_view, of_unlabelled))
            unsupervised = functional.cross_entropy(logits, pseudo, reduction="none")
            loss = loss + (unsupervised * (sure >= recipe.threshold)).mean()
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss.item()} in step {step}, seed {seed}; lower --learning-rate."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update()
        if (step + 1) % epoch_steps == 0 or step + 1 == recipe.steps:
            model.eval()
            with nullcontext() if recipe.published and not len(unlabelled) else ema.applied():
                evaluate(step + 1, model)


@torch.no_grad()
def classify(model: Model, clips: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return the class numbers (n,) of clips uint8 (F, h, w, 3), cut as `test_view` does."""
    device, answers = next(model.parameters()).device, []
    for start in range(0, len(clips), TEST_BATCH):
        part = [frames_to_video(test_view(clip, size)) for clip in clips[start : start + TEST_BATCH]]
        answers.append(model(torch.stack(part).to(device)).argmax(1).cpu().numpy())
    return np.concatenate(answers)


def weak_view(clip: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Mirror half of the clips and shift each by up to an eighth of its sides, borders reflected."""
    if random.integers(2):
        clip = clip[:, :, ::-1]
    for axis in (1, 2):
        side = clip.shape[axis]
        most = int(side * MAX_SHIFT)
        places = np.pad(np.arange(side), most, mode="reflect")
        clip = clip.take(places[random.integers(2 * most + 1) :][:side], axis)
    return clip


def strong_view(clip: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Change a weak view by RandAugment, all frames alike, and cover a square of up to half a side."""
    from torchvision.transforms import v2

    level = int(random.integers(1, AUGMENT_LEVELS + 1))
    augment = v2.RandAugment(AUGMENT_OPERATIONS, level, num_magnitude_bins=AUGMENT_LEVELS + 1, fill=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**31)))
        changed = augment(torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, 1))
    clip = changed.movedim(1, -1).numpy().copy()
    height, width = clip.shape[1:3]
    half = random.uniform(0, MAX_CUTOUT) * min(height, width) / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    clip[:, max(0, round(y - half)) : round(y + half), max(0, round(x - half)) : round(x + half)] = 128
    return clip


def crop_and_flip(clip: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Scale to a random short side of 256 to 320 pixels, crop `size` at random, mirror half: as published."""
    clip = _scaled(clip, int(random.integers(PUBLISHED_SCALES_PX[0], PUBLISHED_SCALES_PX[1] + 1)))
    top, left = (int(random.integers(clip.shape[axis] - size + 1)) for axis in (1, 2))
    clip = clip[:, top : top + size, left : left + size]
    return clip[:, :, ::-1] if random.integers(2) else clip


def test_view(clip: np.ndarray, size: int) -> np.ndarray:
    """Return the clip, or of a larger one its left (or upper) part, as the published code does."""
    return clip if clip.shape[1:3] == (size, size) else _scaled(clip, size)[:, :size, :size]


def endless(count: int, random: np.random.Generator) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, again and again, each time in another one."""
    while count:
        yield from random.permutation(count).tolist()


def _scaled(clip: np.ndarray, side: int) -> np.ndarray:
    frames = torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, 1).float()
    height, width = frames.shape[2:]
    scale = side / min(height, width)
    size = [max(side, int(height * scale)), max(side, int(width * scale))]
    scaled = functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
