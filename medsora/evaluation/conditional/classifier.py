"""Small convolutional classifiers of clips: of what their frames show, or of clips with their motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsora.data.reading.pixels import frames_to_video

WIDTHS = (16, 32, 48, 64)
BATCH, WEIGHT_DECAY = 16, 0.05
LEARNING_RATE, LEARNING_RATE_OF_FRAMES = 2e-3, 4e-3
FRAMES = 4  # random frames of each clip in a step of a `FrameClassifier`


class ClipClassifier(nn.Module):
    """Clips (B, F, 3, H, W) in [-1, 1] -> logits (B, classes); any length and size from 8x32x32 on."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = _features(nn.Conv3d, ((1, 2, 2), 2, 2, 2))
        self.head = nn.Linear(2 * WIDTHS[-1], classes)

    def forward(self, video: Tensor) -> Tensor:
        """Video (B, F, 3, H, W) in [-1, 1] -> logits (B, classes)."""
        features = self.features(video.transpose(1, 2))
        return self.head(torch.cat([features.amax((2, 3, 4)), features.mean((2, 3, 4))], dim=1))


class FrameClassifier(nn.Module):
    """Clips of any number of frames -> logits. Each frame is seen alone: no motion, but few clips suffice."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = _features(nn.Conv2d, (2, 2, 2, 2))
        self.head = nn.Linear(2 * WIDTHS[-1], classes)

    def forward(self, video: Tensor) -> Tensor:
        """Video (B, F, 3, H, W) in [-1, 1], any number of frames -> logits (B, classes)."""
        features = self.features(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self.head(torch.cat([features.amax((1, 3, 4)), features.mean((1, 3, 4))], dim=1))


def train_classifier(
    clips: np.ndarray,
    labels: Sequence[int],
    *,
    epochs: int,
    seed: int = 0,
    of_frames: bool = True,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> ClipClassifier | FrameClassifier:
    """Train a `FrameClassifier`, or a `ClipClassifier`, on clips, uint8 (N, F, H, W, 3), and labels' numbers.

    `of_frames`: a step takes `FRAMES` frames of its clips and turns each clip by right angles; half of the
    steps mirror, half blur by a random amount, brightness and contrast vary, so that what generative models
    get wrong before they get the content wrong does not decide. `progress` is called with the epoch and its
    mean loss. Same seed, same classifier (on a CPU).
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    classifier = (FrameClassifier if of_frames else ClipClassifier)(max(labels) + 1).to(device).train()
    rate = LEARNING_RATE_OF_FRAMES if of_frames else LEARNING_RATE
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(clips) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    targets = torch.tensor(labels, device=device)
    for epoch in range(epochs):
        losses = []
        for rows in np.array_split(random.permutation(len(clips)), -(-len(clips) // BATCH)):
            if of_frames:
                seen = random.permutation(clips.shape[1])[:FRAMES]
                video = _varied(frames_to_video(clips[rows][:, seen]).to(device), random)
            else:
                video = frames_to_video(clips[rows]).to(device)
            loss = functional.cross_entropy(classifier(video), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if progress is not None:
            progress(epoch, float(np.mean(losses)))
    return classifier.eval()


@torch.no_grad()
def predicted_labels(classifier: ClipClassifier | FrameClassifier, clips: np.ndarray) -> np.ndarray:
    """Return the predicted label number of each clip, uint8 (N, F, H, W, 3)."""
    device = next(classifier.parameters()).device
    parts = np.array_split(clips, -(-len(clips) // BATCH))
    logits = (classifier(frames_to_video(part).to(device)) for part in parts)
    return np.concatenate([each.argmax(1).cpu().numpy() for each in logits])


def _features(convolution: type[nn.Module], strides: Sequence[int | tuple[int, ...]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width, stride in zip((3, *WIDTHS), WIDTHS, strides, strict=False):
        layers += [convolution(before, width, 3, stride, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
    return nn.Sequential(*layers)


def _varied(video: Tensor, random: np.random.Generator) -> Tensor:
    turns = random.integers(4, size=len(video))
    video = torch.stack([clip.rot90(turn, (-2, -1)) for clip, turn in zip(video, turns, strict=True)])
    if random.integers(2):
        video = video.flip(-1)
    if random.integers(2):
        size = video.shape[-2:]
        small = [max(8, round(side / random.uniform(1, 2.5))) for side in size]
        flat = functional.interpolate(video.flatten(0, 1), small, mode="area")
        flat = functional.interpolate(flat, size, mode="bilinear", align_corners=False)
        video = flat.unflatten(0, video.shape[:2])
    return (video * random.uniform(0.8, 1.2) + random.uniform(-0.1, 0.1)).clamp(-1, 1)
