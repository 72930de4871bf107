"""MedSora's denoiser as the paper writes it (§3.1, Figures 2 and 3), without optimisations.

`medsora.denoiser.model.MedSora`, which trains and samples, has the same state dict, outputs and gradients and
needs less time and memory. The two share the embeddings and the last layer, which cost little.
docs/fidelity.md lists where the paper is silent or contradicts itself.

Letters of shapes and einops patterns (h and w are the paper's h̄ and w̄):
    b  samples                                    d     width of a token
    f  latent frames                              p     features of an attention head
    l  tokens of a frame, l = h·w                 b̂, l̂  sequences of Eq. 8 and tokens of each
    h  rows of tokens, w  columns of tokens       c     channels of the latents
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module

import local_attention
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from medsora.config.switches import PAPER
from medsora.denoiser.embed import PatchEmbedding, TimeEmbedding
from medsora.denoiser.model import FinalLayer, MedSoraOutput, check_settings, initialise
from medsora.denoiser.velocity import noise_from_velocity
from medsora.kernels import mamba_ssm_backend, reference
from medsora.spiral import VARIANTS, scan_order


class PlainMedSora(nn.Module):
    """ε_θ and Σ_θ of Eq. 2: noisy latents and timesteps in; noise, variance and features out.

    Arguments and errors are those of `medsora.denoiser.model.MedSora`, with `scan` alone of its switches, and
    `use_mamba_ssm`: whether Mamba2 is the package mamba-ssm's, for GPUs, no float64 (default: if usable).
    """

    def __init__(
        self,
        in_channels: int = 16,
        width: int = 512,
        depth: int = 12,
        patch: int = 2,
        heads: int = 8,
        window: int = 8,
        d_state: int = 128,
        headdim: int = 64,
        expand: int = 2,
        d_conv: int = 4,
        dropout: float = 0.1,
        mixing: str = "isolated",
        prediction: str = "noise",
        classes: int = 0,
        scan: str = "spiral",
        use_mamba_ssm: bool | None = None,
    ) -> None:
        super().__init__()
        sizes = dict(width=width, heads=heads, headdim=headdim, expand=expand)
        check_settings({**PAPER, **sizes, "mixing": mixing, "prediction": prediction, "scan": scan})
        self.patch, self.mixing, self.prediction, self.classes = patch, mixing, prediction, classes
        if use_mamba_ssm is None:
            use_mamba_ssm = mamba_ssm_backend.unusable() is None
        mamba = partial(_package_mamba2 if use_mamba_ssm else Mamba2, width, d_state, headdim, expand, d_conv)
        self.patches = PatchEmbedding(in_channels, width, patch)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList()
        for index in range(depth):
            attention = LocalAttention(width, heads, window, dropout)
            spatial = SpatialMamba(width, mamba(), index % VARIANTS, scan)
            self.blocks.append(Block(width, attention, spatial, TemporalMamba(mamba())))
        self.final = FinalLayer(width, patch, in_channels, backend="reference")
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row: no label
        initialise(self)

    def forward(
        self, z: Tensor, t: Tensor, num_images: int = 0, labels: Tensor | None = None
    ) -> MedSoraOutput:
        """Predict the noise in latents z (b, n, c, H, W) at timesteps t (b,) or (b, n).

        The last `num_images` of the n latents are joint images (§3.4). Labels are below `classes`, or
        `classes` for none: (b,) or (b, n).
        """
        labels = torch.full_like(t, self.classes) if labels is None else labels
        t, labels = (x if x.ndim == 2 else x[:, None] for x in (t, labels))  # (b, 1 or n)
        if num_images and self.mixing == "isolated":
            return self._forward_isolated(z, t.expand(z.shape[:2]), num_images, labels.expand(z.shape[:2]))

        x = self.patches(z)  # (b, f, l, d)
        time = self.time(t) if self.labels is None else self.time(t) + self.labels(labels)
        time = F.silu(time)  # (b, 1 or f, d)
        grid = (z.shape[3] // self.patch, z.shape[4] // self.patch)
        features = []
        for block in self.blocks:
            x, y = block(x, time, grid)
            features.append(y[:, : z.shape[1] - num_images])
        eps, variance = self.final(x, self.final.modulation(time), grid)
        if self.prediction == "velocity":
            eps = noise_from_velocity(eps, z, t)
        return MedSoraOutput(eps=eps, variance=variance, features=features)

    def _forward_isolated(self, z: Tensor, t: Tensor, num_images: int, labels: Tensor) -> MedSoraOutput:
        """Predict for the clip alone, and for each joint image as for a clip of one latent."""
        f, together = z.shape[1] - num_images, "(b image) 1 ... -> b image ..."
        clip = self(z[:, :f], t[:, :f], labels=labels[:, :f])
        z, t, labels = (rearrange(x[:, f:], "b image ... -> (b image) 1 ...") for x in (z, t, labels))
        images = self(z, t, labels=labels)
        eps = torch.cat((clip.eps, rearrange(images.eps, together, image=num_images)), dim=1)
        variance = torch.cat((clip.variance, rearrange(images.variance, together, image=num_images)), dim=1)
        return MedSoraOutput(eps=eps, variance=variance, features=clip.features)


class Block(nn.Module):
    """Local attention, spatial Mamba, temporal Mamba (Figure 2): residual branches under adaLN-zero."""

    def __init__(self, width: int, attention: nn.Module, spatial: nn.Module, temporal: nn.Module) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 9 * width)
        self.attention_norm, self.attention = nn.LayerNorm(width), attention
        self.spatial_norm, self.spatial = nn.LayerNorm(width), spatial
        self.temporal_norm, self.temporal = nn.LayerNorm(width), temporal

    def forward(self, x: Tensor, time: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens x (b, f, l, d) after the block, and after its spatial part (the y* of §3.2)."""
        pattern = "b f (branch part d) -> branch part b f 1 d"
        attention, spatial, temporal = rearrange(self.modulation(time), pattern, branch=3, part=3)
        shift, scale, gate = attention
        x = x + gate * self.attention(self.attention_norm(x) * (1 + scale) + shift)  # Eq. 6-7
        shift, scale, gate = spatial
        y = x + gate * self.spatial(self.spatial_norm(x) * (1 + scale) + shift, grid)  # Eq. 8-9
        shift, scale, gate = temporal
        x = y + gate * self.temporal(self.temporal_norm(y) * (1 + scale) + shift)  # Eq. 10
        return x, y


class LocalAttention(nn.Module):
    """Multi-head attention of each token to those around it in its frame (Eq. 6-7).

    At Table 1's settings the package local-attention lets token i see S(i) = i - w .. i + w and rotates q by
    w positions more than k. There is no W_o: Table 1's parameter counts leave no room for it.
    """

    def __init__(self, width: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        settings = dict(look_backward=1, look_forward=1, exact_windowsize=True, autopad=True, dropout=dropout)
        # Its own rotary angles are float32's even in float64, and would enter the state dict.
        self.local = local_attention.LocalAttention(window, **settings, use_rotary_pos_emb=False)

    def forward(self, z: Tensor) -> Tensor:
        """(b, f, l, d) -> (b, f, l, d)."""
        (b, f, length, _), w = z.shape, self.window
        q, k, v = (  # Q^h = z W_q^h, K^h = z W_k^h, V^h = z W_v^h
            rearrange(F.linear(z, W), "b f l (head p) -> (b f head) l p", head=self.heads)
            for W in self.qkv.weight.chunk(3)
        )
        place = torch.arange(length, device=z.device)
        q, k = rotate(torch.stack((q, k)), torch.stack((place + w, place)))
        # With autopad but no mask, tokens would see the zeros behind the last window.
        real = torch.ones(1, length, dtype=torch.bool, device=z.device) if length % w else None
        attention = self.local(q, k, v, mask=real)  # Eq. 6-7
        return rearrange(attention, "(b f head) l p -> b f l (head p)", b=b, f=f)  # Eq. 7: Concat


def rotate(x: Tensor, place: Tensor) -> Tensor:
    """Turn features m and m + p/2 of x (2, N, l, p) by the angle place·10000^(-2m/p), place (2, l)."""
    half = x.shape[-1] // 2
    frequency = 10_000 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = place[:, None, :, None] * frequency
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(exact), angle.sin().to(exact)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class SpatialMamba(nn.Module):
    """Selective scans along spirals over both axes, fused by gates (Eq. 8-9). All scans share one Mamba-2."""

    def __init__(self, width: int, mamba: nn.Module, variant: int, scan: str = "spiral") -> None:
        super().__init__()
        self.variant, self.mamba, self.order = variant, mamba, partial(scan_order, scan)
        self.gate_width, self.gate_height = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z: Tensor, grid: tuple[int, int]) -> Tensor:
        """(b, f, l, d) -> (b, f, l, d); `grid` is (h, w)."""
        f, (h, w) = z.shape[1], grid
        y_h = self.spiral_scan(rearrange(z, "b f (h w) d -> (b h) (f w) d", h=h), f, w)  # b̂ = b·h̄, l̂ = f·w̄
        y_w = self.spiral_scan(rearrange(z, "b f (h w) d -> (b w) (f h) d", h=h), f, h)  # b̂ = b·w̄, l̂ = f·h̄
        y_h = rearrange(y_h, "(b h) (f w) d -> b f (h w) d", h=h, f=f)
        y_w = rearrange(y_w, "(b w) (f h) d -> b f (h w) d", w=w, f=f)
        return torch.sigmoid(self.gate_width(y_w)) * y_w + torch.sigmoid(self.gate_height(y_h)) * y_h  # Eq. 9

    def spiral_scan(self, z: Tensor, f: int, side: int) -> Tensor:
        """Eq. 8: scan z (b̂, l̂, d), l̂ = f·side, along the spiral Ω and along its reverse."""
        omega = self.order(f, side, self.variant).to(z.device)  # Ω
        omega_bar = omega.argsort()  # Ω̄
        y_bar = self.mamba(z[:, omega])  # ȳ of Ω_1, ..., Ω_l̂
        y_hat = self.mamba(z[:, omega.flip(0)])  # ŷ of Ω_l̂, ..., Ω_1
        return y_bar[:, omega_bar] + y_hat.flip(1)[:, omega_bar]


class TemporalMamba(nn.Module):
    """A selective scan along the frames of each token (Eq. 10)."""

    def __init__(self, mamba: nn.Module) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, z: Tensor) -> Tensor:
        """(b, f, l, d) -> (b, f, l, d)."""
        y = self.mamba(rearrange(z, "b f l d -> (b l) f d"))  # Eq. 10
        return rearrange(y, "(b l) f d -> b f l d", b=z.shape[0])


class Mamba2(nn.Module):
    """SSM(A, B, C) of Eq. 8 and 10, a Mamba-2 layer (Dao & Gu, 2024); parameter names are mamba-ssm's."""

    def __init__(self, width: int, d_state: int, headdim: int, expand: int, d_conv: int) -> None:
        super().__init__()
        d_inner, heads = expand * width, expand * width // headdim
        channels = d_inner + 2 * d_state  # x, B and C
        self.headdim = headdim
        self.in_proj = nn.Linear(width, d_inner + channels + heads, bias=False)  # gate; x, B, C; Δ
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels)
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = nn.Linear(d_inner, width, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """(b̂, l̂, d) -> (b̂, l̂, d), from the first token to the last."""
        return self.out_proj(self.scan(self.in_proj(z)))

    def scan(self, zxbcdt: Tensor) -> Tensor:
        """Compute Eq. 3 between a causal convolution and a gated norm: projected z -> (b̂, l̂, d_inner)."""
        weights = (self.conv1d.weight, self.conv1d.bias, self.dt_bias, self.A_log, self.D, self.norm.weight)
        in_order = torch.arange(zxbcdt.shape[1], device=zxbcdt.device)[None, None, None]
        return reference.scan(zxbcdt, *weights, orders=in_order, headdim=self.headdim, eps=self.norm.eps)[0]


def _package_mamba2(width: int, d_state: int, headdim: int, expand: int, d_conv: int) -> nn.Module:
    """mamba-ssm's Mamba2 of the same parameters; imported late, because the package is heavy."""
    fused = mamba_ssm_backend.function_in_use() == "mamba_split_conv1d_scan_combined"
    package = import_module("mamba_ssm.modules.mamba2")
    return package.Mamba2(width, d_state, d_conv, expand=expand, headdim=headdim, use_mem_eff_path=fused)
