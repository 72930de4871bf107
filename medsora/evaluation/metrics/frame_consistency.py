"""Frame Consistency (§4.5, Esser et al. 2023): the mean cosine of CLIP's image embeddings of neighbours.

A still image has 1, the best value there is: read it beside the motion metrics, never alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from transformers import CLIPVisionModelWithProjection

from medsora.data.reading.pixels import frames_to_video
from medsora.evaluation.features.feature_store import Extractor, Features
from medsora.evaluation.metrics.measure import Measure, Metric, weighted_mean
from medsora.evaluation.metrics.weight_files import PUBLISHED
from medsora.saved.hub import HTTP_ERRORS

CONNECT_TIMEOUT_S = 10
# CLIP's own statistics of RGB in [0, 1]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipExtractor(Extractor):
    """Per clip one number: the mean cosine of consecutive frames' CLIP embeddings."""

    width = 1
    title, min_frames = "Frame Consistency", 2

    def __init__(self, weights: Mapping[str, str | Path], device: torch.device | str = "cpu") -> None:
        source = str(weights.get("clip", PUBLISHED["clip"]))
        self.device, self.network = device, _load_clip(source, given="clip" in weights).to(device)
        self.side = self.network.config.image_size
        self.identity: dict[str, Any] = {
            "name": "clip",
            "version": 1,
            "weights": source,
            "weights_sha256": _digest(self.network),
            "resize": f"bicubic with antialiasing to {self.side}x{self.side}",
        }

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 1, 1) for uint8 (B, F, H, W, 3)."""
        video = frames_to_video(clips).to(self.device).add(1).div(2)
        size = (self.side, self.side)
        frames = F.interpolate(video.flatten(0, 1), size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        embedded = self.network(pixel_values=(frames - mean) / std).image_embeds
        embedded = F.normalize(embedded.float(), dim=-1).unflatten(0, video.shape[:2])
        cosines = (embedded[:, 1:] * embedded[:, :-1]).sum(-1).mean(1)
        return cosines[:, None, None].cpu().numpy()


class FrameConsistencyMeasure(Measure):
    """The mean over clips; of one set alone."""

    scores = (Metric("frame_consistency", "Frame Consistency (CLIP), read beside the motion", "higher"),)

    def describe(self, features: Features) -> dict[str, float]:
        """Return the mean cosine, 1 for still images."""
        return {"frame_consistency": weighted_mean(features.per_clip()[:, 0], features.weights)}


def _load_clip(source: str, *, given: bool) -> CLIPVisionModelWithProjection:
    if given and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} is no folder of a CLIP model (config.json); correct --weights clip=..."
        )
    load = partial(
        CLIPVisionModelWithProjection.from_pretrained, source, output_loading_info=True, weights_only=True
    )
    try:
        try:
            network, report = load(local_files_only=True)  # a cached file needs no network
        except OSError:
            if given:
                raise
            HfApi().model_info(source, timeout=CONNECT_TIMEOUT_S)  # fails at once; a download tries for long
            network, report = load()
    except (OSError, UnpicklingError, *HTTP_ERRORS) as error:
        reason = str(error).strip().partition("\n")[0]
        if given:
            reason = f"{source} cannot be loaded as a CLIP model ({reason.rstrip('.')})"
            raise OSError(f"{reason}; correct --weights clip=...") from error
        raise OSError(
            f"the weights for fc, the CLIP model {source}, could not be downloaded from the Hugging Face Hub "
            f"({reason.rstrip('.')}); fetch it elsewhere and give its folder with --weights clip=FOLDER, or "
            "start this once where there is a network."
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        first = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
        raise ValueError(f"{source} lacks parts of the CLIP vision model: {first} is missing or differs.")
    return network.requires_grad_(False).eval()


def _digest(network: torch.nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        state.update(name.encode())
        state.update(tensor.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
