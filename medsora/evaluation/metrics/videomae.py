"""CD-FVD's features (Ge et al. 2024): VideoMAE-v2 giant, fine-tuned on Something-Something v2.

The network is built from transformers' VideoMAE; the published checkpoint's names are translated and every
tensor is accounted for. As in the package `cd-fvd`, pixels are divided by 255 and *not* normalised further.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from medsora.data.reading.pixels import frames_to_video
from medsora.errors import BadInput
from medsora.evaluation.features.feature_store import Extractor
from medsora.evaluation.metrics.weight_files import identity_of, read_state, weight_file
from medsora.flow_prior.weights import load_strictly

GIANT: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 14,
    "num_frames": 16,
    "tubelet_size": 2,
    "hidden_size": 1408,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
}
CLASSES = 174
# How the checkpoint's names become transformers', in this order; q, k and v are cut apart before.
TRANSLATION = [
    (r"^patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.", r"backbone.encoder.layer.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]


class VideoMAE(nn.Module):
    """The encoder, its tokens' mean, normalised; `head` is loaded, so that all is, and not used."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        settings = VideoMAEConfig(**config, layer_norm_eps=1e-6, use_mean_pooling=True)
        self.backbone = VideoMAEModel(settings)
        self.fc_norm = nn.LayerNorm(settings.hidden_size, eps=1e-6)
        self.head = nn.Linear(settings.hidden_size, CLASSES)

    def forward(self, video: Tensor) -> Tensor:
        """(B, F, 3, side, side) in [0, 1] -> (B, hidden_size)."""
        return self.fc_norm(self.backbone(video).last_hidden_state.mean(1))


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the checkpoint's tensors under this module's names."""
    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        before, separator, kind = name.rpartition(".attn.")
        if separator and kind == "qkv.weight":
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                parts[f"{before}.attn.{part}.weight"] = piece
        elif separator and kind in ("q_bias", "v_bias"):
            parts[f"{before}.attn.{'query' if kind == 'q_bias' else 'value'}.bias"] = tensor
        else:
            parts[name] = tensor
    result = {}
    for name, tensor in parts.items():
        for pattern, replacement in TRANSLATION:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


class VideoMAEExtractor(Extractor):
    """Clips to VideoMAE's features; frames are resized to 224x224 (bilinear, as in `cd-fvd`)."""

    def __init__(
        self,
        weights: Mapping[str, str | Path],
        device: torch.device | str = "cpu",
        config: Mapping[str, Any] = GIANT,
    ) -> None:
        path = weight_file("cd-fvd", weights)
        self.device, self.side, self.frames = device, config["image_size"], config["num_frames"]
        network = VideoMAE(**config)
        load_strictly(network, translated(read_state(path)), path, "VideoMAE-v2 giant for CD-FVD")
        self.network = network.requires_grad_(False).eval().to(device)
        self.width = config["hidden_size"]
        self.identity = identity_of("videomae", path) | {
            "features": "mean of the tokens, layer norm",
            "resize": f"bilinear to {self.side}x{self.side}, no antialiasing, range [0, 1]",
        }

    def rows(self, frames: int) -> int:
        """Return 1. Raises `BadInput` for clips of another length than the network's."""
        if frames != self.frames:
            raise BadInput(f"CD-FVD is defined on clips of {self.frames} frames, not {frames}; set --frames.")
        return 1

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 1, hidden_size) for uint8 (B, F, H, W, 3)."""
        video = frames_to_video(clips).to(self.device).add(1).div(2)
        size = (self.side, self.side)
        frames = F.interpolate(video.flatten(0, 1), size, mode="bilinear", align_corners=False)
        return self.network(frames.unflatten(0, video.shape[:2]))[:, None].float().cpu().numpy()
