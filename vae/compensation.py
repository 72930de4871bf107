"""The frequency compensation of §3.3: residual modules, and where they sit in CogVideoX's causal VAE.

Nothing of diffusers is copied: the base's own blocks pass hidden states, latents and caches along, and the
modules here take part as further members of those blocks. All of them end in a zero-initialised convolution,
so an untrained compensation returns its input to the last bit.

Shapes: hidden states `(B, C, F, H, W)`, as everywhere inside the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXResnetBlock3D,
)
from torch import Tensor, nn

Cache = dict[str, Tensor]


class SpatialCompensation(nn.Module):
    """Two 2-D convolutions over each frame by itself: space is reconstructed, time is not touched."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.conv_in = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv_out = _zeroed(nn.Conv2d(channels, channels, kernel_size=3, padding=1))

    def forward(
        self,
        hidden: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        conv_cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """`(B, C, F, H, W)` -> the same plus its compensation; an empty cache, for no frame looks back."""
        frames = hidden.transpose(1, 2).flatten(0, 1)
        residual = self.conv_out(F.silu(self.conv_in(self.norm(frames))))
        return hidden + residual.unflatten(0, (hidden.shape[0], hidden.shape[2])).transpose(1, 2), {}


class CausalCompensation(nn.Module):
    """Two causal 3-D convolutions: space and time are reconstructed, from this frame and those before it.

    The norm works on each frame by itself, so that the module adds no mixing of frames to the base's.
    """

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.conv_in = CogVideoXCausalConv3d(channels, channels, kernel_size=3, pad_mode="first")
        self.conv_out = CogVideoXCausalConv3d(channels, channels, kernel_size=3, pad_mode="first")
        _zeroed(self.conv_out.conv)

    def forward(self, hidden: Tensor, conv_cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """`(B, C, F, H, W)` and the cache that the chunk before left -> compensated, and this one's cache."""
        cache = conv_cache or {}
        left_behind: Cache = {}
        frames = self.norm(hidden.transpose(1, 2).flatten(0, 1))
        residual = frames.unflatten(0, (hidden.shape[0], hidden.shape[2])).transpose(1, 2)
        residual, left_behind["conv_in"] = self.conv_in(residual, conv_cache=cache.get("conv_in"))
        residual, left_behind["conv_out"] = self.conv_out(F.silu(residual), conv_cache=cache.get("conv_out"))
        return hidden + residual, left_behind


class CompensatedResnetBlock3D(CogVideoXResnetBlock3D):
    """A resnet of the base with a `CausalCompensation` behind it, whose cache travels in the resnet's own.

    Made from a resnet that exists (`behind`), whose parameters keep their names and their identity.
    """

    compensation: CausalCompensation

    @classmethod
    def behind(cls, resnet: CogVideoXResnetBlock3D, norm_groups: int) -> CompensatedResnetBlock3D:
        """Turn the base's `resnet` into a compensated one, in place."""
        resnet.__class__ = cls
        resnet.compensation = CausalCompensation(resnet.out_channels, norm_groups)
        return resnet

    def forward(
        self,
        inputs: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        conv_cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """As the base's resnet; the compensation follows its output."""
        hidden, left_behind = super().forward(inputs, temb, zq, conv_cache)
        hidden, left_behind["compensation"] = self.compensation(
            hidden, (conv_cache or {}).get("compensation")
        )
        return hidden, left_behind


def add_compensation(base: AutoencoderKLCogVideoX) -> None:
    """Put the modules into `base`, in place (Figure 4). The base's own parameters keep their names.

    - Encoder: a `SpatialCompensation` as the last layer before every spatial down-sampling.
    - Decoder: a `CausalCompensation` in the middle of every up block, after the first half of its resnets.
    """
    groups = base.config.norm_num_groups
    for block in base.encoder.down_blocks:
        if block.downsamplers is not None:
            block.resnets.append(SpatialCompensation(block.resnets[-1].out_channels, groups))
    for block in base.decoder.up_blocks:
        middle = (len(block.resnets) - 1) // 2
        CompensatedResnetBlock3D.behind(block.resnets[middle], groups)


def compensation_modules(model: nn.Module) -> Iterator[tuple[str, SpatialCompensation | CausalCompensation]]:
    """Every compensation inside `model`, with its name there."""
    for name, module in model.named_modules():
        if isinstance(module, SpatialCompensation | CausalCompensation):
            yield name, module


def _zeroed(convolution: nn.Conv2d | nn.Conv3d) -> nn.Conv2d | nn.Conv3d:
    """Zero weight and bias: the residual starts as nothing at all."""
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.zero_()
    return convolution


@contextmanager
def compensation_off(model: nn.Module) -> Iterator[None]:
    """Let every compensation inside `model` add nothing for a while: what is left is the frozen base."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output: (inputs[0], output[1]))
        for _, module in compensation_modules(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
