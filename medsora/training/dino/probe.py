"""Linear probes of how much motion tokens encode, on clips that the encoder was not trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsora.flow_prior.dino import DinoEncoder
from medsora.training.dino.pictures import FlowPictures, as_pictures

BATCH, GRID = 64, 4
RIDGE = 1e-2  # share of a feature's variance, which is 1


def probe(encoder: DinoEncoder, pictures: FlowPictures) -> dict[str, float]:
    """Return how well the last layer's tokens distinguish motion, instruments and clips; see `scores`."""
    batches = [
        torch.cat([tokens.mean(dim=(2, 3)), tokens.std(dim=(2, 3))], dim=1)
        for first in range(0, len(pictures.pictures), BATCH)
        for tokens in encoder(as_pictures(pictures.pictures[first : first + BATCH]), [encoder.depth - 1])
    ]
    return scores(torch.cat(batches), pictures)


def colour_probe(pictures: FlowPictures) -> dict[str, float]:
    """Return the same scores of mean colours in GRID x GRID squares, a baseline without an encoder."""
    small = [
        torch.nn.functional.adaptive_avg_pool2d(as_pictures(pictures.pictures[first : first + BATCH]), GRID)
        for first in range(0, len(pictures.pictures), BATCH)
    ]
    return scores(torch.cat(small).flatten(1), pictures)


def scores(features: Tensor, pictures: FlowPictures) -> dict[str, float]:
    """Score features (N, D) of pictures by probes trained on half of the clips and tested on the others.

    Pictures without motion are left out.

    Returns:
        "motion (R²)": explained variance of shift, expansion and rotation, mean over the four;
        "instrument (balanced accuracy)": that of a linear classifier; chance is 0.5;
        "clip (nearest neighbour)": share of frames whose most similar other frame, the two beside it left
        out, is of the same clip.
    """
    kept = torch.from_numpy(pictures.moving)
    clip = torch.from_numpy(pictures.clip)[kept]
    instrument = torch.from_numpy(pictures.instrument)[kept]
    motion = torch.from_numpy(pictures.motion)[kept].double()
    features = features[kept].double()
    learned = clip % 6 < 3  # kinds take turns, so that both halves hold all three
    mean, spread = features[learned].mean(0), features[learned].std(0).clamp_min(1e-6)
    features = (features - mean) / spread

    predicted = _ridge(features[learned], motion[learned], features[~learned])
    wanted = motion[~learned]
    r2 = 1 - (predicted - wanted).square().mean(0) / wanted.var(0, correction=0).clamp_min(1e-12)
    signs = 2.0 * instrument[learned].double()[:, None] - 1
    sign, truth = _ridge(features[learned], signs, features[~learned])[:, 0], instrument[~learned]
    balanced = 0.5 * ((sign[truth] > 0).double().mean() + (sign[~truth] <= 0).double().mean())

    unit = torch.nn.functional.normalize(features, dim=1)
    frame = torch.arange(len(unit))
    alike = unit @ unit.T
    alike[(frame[:, None] - frame[None]).abs() <= 1] = -np.inf
    same = clip[alike.argmax(dim=1)] == clip
    return {
        "motion (R²)": float(r2.mean()),
        "instrument (balanced accuracy)": float(balanced),
        "clip (nearest neighbour)": float(same.double().mean()),
    }


def _ridge(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Return the ridge regression's answers for `queries`; features have unit variance."""
    centre = y.mean(0)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return queries @ torch.linalg.solve(gram, x.T @ (y - centre)) + centre
