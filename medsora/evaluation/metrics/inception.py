"""FID's and IS's features: torch-fidelity's InceptionV3 with the original weights, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.metrics.measure import Measure, Metric
from medsora.evaluation.metrics.weight_files import identity_of, weight_file
from medsora.flow_prior.weights import read_weights

POOL, CLASSES = 2048, 1008
FID_COLUMNS, LOGIT_COLUMNS = slice(POOL), slice(POOL, POOL + CLASSES)
SPLITS, SPLIT_SEED = 10, 0


class InceptionExtractor(Extractor):
    """Every frame's pooled features, for FID, and unbiased logits, for IS, side by side."""

    width = POOL + CLASSES

    def __init__(self, weights: Mapping[str, str | Path], device: torch.device | str = "cpu") -> None:
        path = weight_file("inception", weights)
        read_weights(path)  # torch-fidelity unpickles anything: only a file of plain tensors is passed on
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
        except RuntimeError as error:
            reason = str(error).partition("\n")[2].strip().partition("\n")[0]
            raise ValueError(
                f"{path} does not fit torch-fidelity's InceptionV3 ({reason[:200]}); give its own weights."
            ) from error
        self.device, self.network = device, network.to(device)
        self.identity = identity_of("inception", path) | {
            "features": "pool 2048 and unbiased logits of every frame",
            "resize": "torch-fidelity's: bilinear to 299x299 as TensorFlow 1",
        }

    def rows(self, frames: int) -> int:
        """Return one row per frame."""
        return frames

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, F, 3056) for uint8 (B, F, H, W, 3)."""
        frames = torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).to(self.device)
        pooled, logits = self.network(frames.contiguous())
        features = torch.cat([pooled, logits], 1).unflatten(0, clips.shape[:2])
        return features.float().cpu().numpy()


class InceptionScoreMeasure(Measure):
    """exp(mean KL(p(y|x) ‖ p(y))) over frames (Salimans et al. 2016), mean over ten parts of the clips.

    The parts are random, as in torch-fidelity: neighbouring clips come from one video, so consecutive parts
    hold few videos and score low however varied the set is. Only `published` scores take consecutive ones.
    """

    scores = (Metric("inception_score", "Inception Score", "higher"),)

    def describe(self, features: Features) -> dict[str, float]:
        """Return the score; fewer than ten clips make fewer parts."""
        used, scores = np.flatnonzero(features.weights), []
        if not self.published:
            used = np.random.default_rng(SPLIT_SEED).permutation(used)
        for part in np.array_split(used, min(SPLITS, len(used))):
            weights = np.zeros(len(features.weights))
            weights[part] = features.weights[part]
            scores.append(inception_score(features.reweighted(weights), LOGIT_COLUMNS))
        return {"inception_score": float(np.mean(scores))}


def inception_score(features: Features, columns: slice = slice(None)) -> float:
    """Return the score of one part, from the logits in `columns`, in one pass and in float64."""
    total, mass, entropy = 0.0, 0.0, 0.0
    for values, weights in features.batches():
        logits = values[..., columns].astype(np.float64).reshape(-1, len(range(values.shape[-1])[columns]))
        weight = np.repeat(weights, values.shape[1])
        log_p = log_softmax(logits, axis=1)
        p = np.exp(log_p)
        total += weight.sum()
        mass = mass + weight @ p
        entropy += float(weight @ (p * log_p).sum(1))
    marginal = mass / total
    cross = float((marginal * np.log(np.maximum(marginal, 1e-300))).sum())
    return float(np.exp(entropy / total - cross))
