"""Endora's denoiser (Li et al., 2024), which is Latte's (Ma et al., 2024) with joint images beside the clip.

Shapes: tokens (B, n, l, d) of n latent frames, the joint images last, with l tokens each, row by row.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it beside the class that it loads
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from medsora.config.choices import LAYOUTS, PREDICTIONS
from medsora.config.presets import ENDORA_PRESETS
from medsora.denoiser.attention import attend
from medsora.denoiser.base import Denoiser, Modulation
from medsora.denoiser.embed import TIME_FEATURES, PatchEmbedding, TimeEmbedding, position_table, sinusoids
from medsora.denoiser.linear import Linear
from medsora.denoiser.model import MedSoraOutput, initialise
from medsora.denoiser.velocity import noise_from_velocity
from medsora.errors import BadInput
from medsora.tables import kept_table


class Endora(Denoiser):
    """A transformer whose blocks attend within a frame (spatial) or along time (temporal), under adaLN-zero.

    Joint images pass through the spatial blocks alone, each by itself, so they never reach the clip. A call
    and its output are `MedSora`'s; features are the tokens after every spatial block.

    Args:
        in_channels: C, the latents' channels.
        width: d.
        depth: number of blocks, half of them spatial.
        patch: side of a token in latent pixels.
        heads: number of heads of every attention layer.
        layout: "interlaced" (spatial and temporal blocks take turns) or "separate" (all spatial blocks, then
            all temporal ones: the published ablation `_var`).
        prediction: "noise" (as published) or "velocity", as in `MedSora`.
        classes: how many labels a clip may have; 0 (as published for endoscopy): none.
        prior_width: channels of the image prior whose adapter is trained (`add_adapter`); 0: no adapter.

    Raises:
        BadInput: if the sizes do not divide, or `layout` or `prediction` is unknown.
    """

    presets: ClassVar = ENDORA_PRESETS

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        width: int = 1152,
        depth: int = 28,
        patch: int = 2,
        heads: int = 16,
        layout: str = "interlaced",
        prediction: str = "noise",
        classes: int = 0,
        prior_width: int = 0,
    ) -> None:
        super().__init__()
        if depth % 2 or width % 4 or width % heads:
            raise BadInput(
                f"depth {depth} must be even, and width {width} divisible by 4 and by the heads ({heads})"
            )
        for name, value, known in (("layout", layout, LAYOUTS), ("prediction", prediction, PREDICTIONS)):
            if value not in known:
                raise BadInput(f"{name} {value!r} is unknown; it is one of {', '.join(known)}")
        self.patches = Patches(in_channels, width, patch)
        self.time = Time(width)
        temporal = [i % 2 == 1 if layout == "interlaced" else i >= depth // 2 for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, along_time) for along_time in temporal)
        self.final = FinalLayer(width, patch, in_channels)
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row: no label
        self.gradient_checkpointing = False
        initialise(self)
        for drawn in (self.time.mlp[0], self.time.mlp[2], *([self.labels] if classes else [])):
            nn.init.normal_(drawn.weight, std=0.02)
        self.add_adapter(prior_width)

    @property
    def num_features(self) -> int:
        """Number of features that a forward returns: one per spatial block."""
        return self.config.depth // 2

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        num_images: int = 0,
        modulation: Modulation | None = None,
        labels: Tensor | None = None,
        with_features: bool = True,
    ) -> MedSoraOutput:
        """Predict the noise in `z` and the variance of the reverse step; arguments are those of `MedSora`.

        Raises:
            BadInput: if the shapes do not fit.
        """
        self._check(z, t, num_images, labels)
        clip = z.shape[1] - num_images
        x = self.patches(z)
        positions = time_table(clip, x.shape[-1], x.device, x.dtype)
        modulation = self.modulation(t, labels) if modulation is None else modulation
        features, image_features = ([], []) if with_features else (None, None)
        placed = False
        for block, of_block in zip(self.blocks, modulation.blocks, strict=True):
            if block.along_time and not placed:
                x, placed = torch.cat((x[:, :clip] + positions, x[:, clip:]), dim=1), True
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, of_block, clip)
            else:
                x = block(x, of_block, clip)
            if with_features and not block.along_time:
                features.append(x[:, :clip])
                image_features.append(x[:, clip:])
        grid = (z.shape[3] // self.config.patch, z.shape[4] // self.config.patch)
        eps, variance = self.final(x, modulation.final, grid)
        if self.config.prediction == "velocity":
            eps = noise_from_velocity(eps, z, t)
        return MedSoraOutput(eps, variance, features, image_features)


class Patches(PatchEmbedding):
    """Latents (B, n, C, h, w) -> tokens with fixed positions: column first, then row."""

    def forward(self, z: Tensor) -> Tensor:
        """z (B, n, C, H, W) -> tokens (B, n, rows·cols, d)."""
        patches = self.projection(z.flatten(0, 1))
        tokens = rearrange(patches, "(B n) d h w -> B n (h w) d", B=z.shape[0])
        dtype = torch.promote_types(tokens.dtype, self.projection.weight.dtype)
        return tokens + place_table(*patches.shape[2:], tokens.shape[-1], z.device, dtype)


class Time(TimeEmbedding):
    """Diffusion timesteps (...) -> (..., d); the sinusoids' cosines come first."""

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps of any shape -> features (…, d)."""
        dtype = self.mlp[0].weight.dtype
        features = sinusoids(t.to(torch.promote_types(dtype, torch.float32)), TIME_FEATURES)
        return self.mlp(features.roll(TIME_FEATURES // 2, dims=-1).to(dtype))


@kept_table
def place_table(rows: int, cols: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Fixed positions in the frame, (rows·cols, d): MedSora's, with the column's half before the row's."""
    return position_table(rows, cols, width, device, dtype).roll(width // 2, dims=-1)


@kept_table
def time_table(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Fixed positions in the clip, (frames, 1, d): sines, then cosines, of the frame's number."""
    return sinusoids(torch.arange(frames, dtype=torch.float64), width)[:, None].to(device, dtype)


class Block(nn.Module):
    """Attention within each frame, or along the clip's frames at each place, and an MLP, under adaLN-zero."""

    def __init__(self, width: int, heads: int, along_time: bool) -> None:
        super().__init__()
        self.heads, self.along_time = heads, along_time
        self.modulation = Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.projection = Linear(width, 3 * width), Linear(width, width)
        self.widen, self.narrow = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor, modulation: Tensor, clip: int) -> Tensor:
        """Tokens (B, n, l, d) after the block; a temporal one changes those of the first `clip` frames alone.

        `modulation` is `self.modulation` of the activated time embedding, (B or 1, 1 or n, 6·d).
        """
        if self.along_time and clip < x.shape[1]:
            changed = self.forward(x[:, :clip], modulation[:, :clip], clip)
            return torch.cat((changed, x[:, clip:]), dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unsqueeze(2).chunk(6, dim=-1)
        x = torch.addcmul(x, gate, self._attend(torch.addcmul(shift, self.norm(x), 1 + scale)))
        y = torch.addcmul(mlp_shift, self.norm(x), 1 + mlp_scale)
        return torch.addcmul(x, mlp_gate, self.narrow(F.gelu(self.widen(y), approximate="tanh")))

    def _attend(self, x: Tensor) -> Tensor:
        inside = "(B l) head n p" if self.along_time else "(B n) head l p"
        sizes = {"B": x.shape[0], "l": x.shape[2]}
        qkv = rearrange(self.qkv(x), f"B n l (part head p) -> part {inside}", part=3, head=self.heads)
        y = attend(*qkv.unbind())
        return self.projection(rearrange(y, f"{inside} -> B n l (head p)", **sizes))


class FinalLayer(nn.Module):
    """Tokens -> noise and variance: LayerNorm without affine, adaLN, Linear, patches put back in place."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = Linear(width, 2 * width)
        self.linear = Linear(width, 2 * channels * patch * patch)

    def forward(self, x: Tensor, modulation: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, n, l, d), and `self.modulation` of the time embedding -> two tensors (B, n, C, h, w)."""
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        y = self.linear(torch.addcmul(shift, self.norm(x), 1 + scale))
        in_place = "B n (h w) (i j out C) -> out B n C (h i) (w j)"
        return rearrange(y, in_place, h=grid[0], out=2, i=self.patch, j=self.patch).unbind()
