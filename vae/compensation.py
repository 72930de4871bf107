"""The frequency compensation of §3.3: residual modules, and where they sit in CogVideoX's causal VAE.

Encoder modules work on single frames. Decoder modules come in two kinds: `causal` ones continue the base's
causal convolutions from chunk to chunk, `standard` ones are the paper's plain 3-D convolutions.

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

from medsora.vae.choices import COMPENSATION_KINDS

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


class StandardCompensation(nn.Module):
    """Two standard 3-D convolutions, padded with zeros in time as in space; no norm, as in the paper's text.

    The zeros lie at both ends of the frames that are decoded together (a chunk of two latents, or the first
    three of 8k+1 frames), so a frame's place in its chunk changes its value, and no chunk depends on another.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.conv_out = _zeroed(nn.Conv3d(channels, channels, kernel_size=3, padding=1))

    def forward(self, hidden: Tensor, conv_cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """`(B, C, F, H, W)`, all frames of one chunk -> compensated, and an empty cache."""
        return hidden + self.conv_out(F.silu(self.conv_in(hidden))), {}


DecoderCompensation = CausalCompensation | StandardCompensation
Compensation = SpatialCompensation | DecoderCompensation


class CompensatedResnetBlock3D(CogVideoXResnetBlock3D):
    """A resnet of the base with a compensation behind it, whose cache travels in the resnet's own.

    Made from a resnet that exists (`behind`), whose parameters keep their names and their identity.
    """

    compensation: DecoderCompensation

    @classmethod
    def behind(
        cls, resnet: CogVideoXResnetBlock3D, compensation: DecoderCompensation
    ) -> CompensatedResnetBlock3D:
        """Turn the base's `resnet` into a compensated one, in place."""
        resnet.__class__ = cls
        resnet.compensation = compensation
        return resnet

    def forward(
        self,
        inputs: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        conv_cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """Apply the base's resnet, then the compensation."""
        hidden, left_behind = super().forward(inputs, temb, zq, conv_cache)
        hidden, left_behind["compensation"] = self.compensation(
            hidden, (conv_cache or {}).get("compensation")
        )
        return hidden, left_behind


def add_compensation(base: AutoencoderKLCogVideoX, kind: str) -> None:
    """Put the modules into `base`, in place (Figure 4). The base's own parameters keep their names.

    - Encoder: a `SpatialCompensation` as the last layer before every spatial down-sampling.
    - Decoder: a `CausalCompensation` or `StandardCompensation`, by `kind`, in the middle of every up
      block, after the first half of its resnets.

    Raises `ValueError` for a kind that is neither "causal" nor "standard".
    """
    if kind not in COMPENSATION_KINDS:
        raise ValueError(f"compensation_kind is {kind!r} but must be one of {', '.join(COMPENSATION_KINDS)}.")
    groups = base.config.norm_num_groups
    for block in base.encoder.down_blocks:
        if block.downsamplers is not None:
            block.resnets.append(SpatialCompensation(block.resnets[-1].out_channels, groups))
    for block in base.decoder.up_blocks:
        resnet = block.resnets[(len(block.resnets) - 1) // 2]
        channels = resnet.out_channels
        compensation = (
            CausalCompensation(channels, groups) if kind == "causal" else StandardCompensation(channels)
        )
        CompensatedResnetBlock3D.behind(resnet, compensation)


def compensation_modules(model: nn.Module) -> Iterator[tuple[str, Compensation]]:
    """Every compensation inside `model`, with its name there."""
    for name, module in model.named_modules():
        if isinstance(module, Compensation):
            yield name, module


def _zeroed(convolution: nn.Conv2d | nn.Conv3d) -> nn.Conv2d | nn.Conv3d:
    """Zero weight and bias: the residual starts as nothing at all."""
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.zero_()
    return convolution


@contextmanager
def compensation_off(model: nn.Module) -> Iterator[None]:
    """Disable every compensation inside `model` temporarily, which leaves the frozen base."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output: (inputs[0], output[1]))
        for _, module in compensation_modules(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
