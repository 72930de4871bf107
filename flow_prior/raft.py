"""Optical flow by RAFT, torchvision's model, from torchvision's or princeton-vl's weights (§3.2, step 1)."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from pickle import UnpicklingError
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from medsora.flow_prior.choices import RAFT_VARIANTS
from medsora.flow_prior.weights import load_strictly, read_weights

_MODELS = ((raft_large, Raft_Large_Weights.C_T_V2), (raft_small, Raft_Small_Weights.C_T_V2))
VARIANTS = dict(zip(RAFT_VARIANTS, _MODELS, strict=True))
MIN_SIDE_PX = 128  # below it the coarsest level of RAFT's correlation pyramid has a single pixel
STRIDE = 8

# How princeton-vl's names become torchvision's, in this order; a name without a rule stays and is refused.
PRINCETON_TO_TORCHVISION = [
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"\.(layer\d\.\d)\.conv(\d)\.", r".\1.convnormrelu\2.0."),
    (r"\.(layer\d\.\d)\.norm(\d)\.", r".\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
]


class RaftEstimator(nn.Module):
    """A frozen RAFT: video to flow. Built once, used for every batch.

    Args:
        variant: "raft_large" or "raft_small".
        weights: a local file in torchvision's or princeton-vl's names (`.pth` or `.safetensors`), or None for
            torchvision's own (FlyingChairs + FlyingThings3D), from its cache or downloaded into it.
        pairs_at_once: frame pairs in one pass; what bounds the memory.

    Raises:
        ValueError: unknown variant, or weights that do not fit it.
        OSError: weights that could not be loaded.
    """

    def __init__(
        self, variant: str = "raft_large", weights: str | Path | None = None, *, pairs_at_once: int = 8
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"RAFT variant {variant!r} is unknown: expected one of {', '.join(VARIANTS)}.")
        build, published = VARIANTS[variant]
        self.pairs_at_once = pairs_at_once
        self.network = build(weights=None)
        if weights is None:
            state, source = _published_weights(variant, published), published.url
        else:
            state, source = to_torchvision_names(read_weights(weights)), weights
        load_strictly(self.network, state, source, f"torchvision's {variant}")
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a frozen network has no other."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Return the flow (B, F, 2, H, W) in pixels of a video (B, F+1, 3, H, W) in [-1, 1]."""
        height, width = video.shape[-2:]
        first, second = video[:, :-1].flatten(0, 1).float(), video[:, 1:].flatten(0, 1).float()
        parts = zip(*(frames.split(self.pairs_at_once) for frames in (first, second)), strict=True)
        flow = torch.cat([self._flow_of_pairs(*pairs) for pairs in parts])
        return flow.reshape(video.shape[0], -1, 2, height, width)

    def _flow_of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        size = working_size(height, width)
        if size == (height, width):
            return self.network(first, second)[-1]
        enlarged = (_resize(frames, size) for frames in (first, second))
        flow = _resize(self.network(*enlarged)[-1], (height, width))
        return flow * flow.new_tensor([width / size[1], height / size[0]]).view(2, 1, 1)


def working_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) at which RAFT sees a frame: at least 128, multiples of 8, near its shape."""
    scale = max(1.0, MIN_SIDE_PX / min(height, width))
    return tuple(STRIDE * ceil(side * scale / STRIDE) for side in (height, width))


def to_torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename princeton-vl's RAFT tensors to torchvision's names; those already so named stay."""
    if not any(name.removeprefix("module.").startswith("fnet.") for name in state):
        return state
    renamed = {}
    for name, tensor in state.items():
        if _is_second_name(name, state):
            continue
        for pattern, replacement in PRINCETON_TO_TORCHVISION:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _is_second_name(name: str, state: dict[str, Tensor]) -> bool:
    """Whether a norm is listed a second time: princeton-vl's blocks register their shortcut's norm twice."""
    shortcut = re.sub(r"\.norm[34]\.", ".downsample.1.", name)
    return shortcut != name and shortcut in state and torch.equal(state[shortcut], state[name])


def _published_weights(variant: str, published: Raft_Large_Weights | Raft_Small_Weights) -> dict[str, Tensor]:
    try:
        return published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; a download whose hash is wrong
        raise OSError(
            f"the weights of {variant} cannot be downloaded ({error}): connect to the network once so that "
            f"torchvision can fetch {published.url}, or give a local file (flow.weights)."
        ) from error
    except UnpicklingError as error:  # a file that lay in the cache already is not hashed
        raise ValueError(
            f"{torch.hub.get_dir()}/checkpoints holds something else than tensors as the file of "
            f"{published.url}; delete that file."
        ) from error


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
