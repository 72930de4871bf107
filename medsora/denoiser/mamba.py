"""Mamba-2 over space and over time (Eq. 8-10): which tokens follow one another; `kernels` computes the scans.

Shapes: B samples, n latent frames, h̄ x w̄ tokens per frame (l = h̄·w̄), d wide inside the model, P wide after
the projection that feeds a scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels import mamba2_scan
from medsora.spiral import spatial_walks, temporal_walks

A_RANGE = (1.0, 16.0)
STEP_RANGE = (1e-3, 1e-1)  # Δ
STEP_FLOOR = 1e-4


class Mamba2(nn.Module):
    """The weights of one Mamba-2 layer under `mamba_ssm.modules.mamba2.Mamba2`'s own names, with one group.

    `project`, `scan` and `out_proj` are apart because the projections look at single tokens: whoever scans
    the same tokens in several arrangements projects them once.
    """

    def __init__(
        self, width: int, *, d_state: int, headdim: int, expand: int, d_conv: int, backend: str
    ) -> None:
        super().__init__()
        d_inner = expand * width
        heads = d_inner // headdim
        conv_channels = d_inner + 2 * d_state
        self.headdim, self.backend = headdim, backend
        self.in_proj = nn.Linear(width, d_inner + conv_channels + heads, bias=False)
        self.conv1d = nn.Conv1d(conv_channels, conv_channels, d_conv, groups=conv_channels)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = nn.Linear(d_inner, width, bias=False)
        self.initialise_dynamics()

    @torch.no_grad()
    def initialise_dynamics(self) -> None:
        """Draw A uniformly and Δ log-uniformly from Mamba's ranges; D = 1."""
        low, high = (math.log(step) for step in STEP_RANGE)
        step = self.dt_bias.new_empty(self.dt_bias.shape).uniform_(low, high).exp().clamp(min=STEP_FLOOR)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.A_log.uniform_(*A_RANGE).log_()
        self.D.fill_(1.0)

    def project(self, x: Tensor) -> Tensor:
        """Tokens (..., d) -> (..., P): gate, input, B, C and Δ of the scan."""
        return self.in_proj(x)

    def scan(self, zxbcdt: Tensor, orders: Tensor | None = None) -> Tensor:
        """Scan projected tokens (b, L, P) along `orders` of `kernels.mamba2_scan`: (..., b, L, d_inner).

        What comes out still awaits `out_proj`, which looks at single tokens too.
        """
        return mamba2_scan(
            zxbcdt,
            self.conv1d.weight,
            self.conv1d.bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.norm.weight,
            orders=orders,
            headdim=self.headdim,
            eps=self.norm.eps,
            backend=self.backend,
        )

    def forward(self, x: Tensor) -> Tensor:
        """A plain causal Mamba-2 layer: (b, L, d) -> (b, L, d)."""
        return self.out_proj(self.scan(self.project(x)))


class SpatialMamba(nn.Module):
    """Bidirectional spiral scans along both axes of the frames, fused by gates (Eq. 8-9).

    One set of Mamba-2 weights serves all four scans. `variant` names the spiral.
    """

    def __init__(self, width: int, variant: int, **mamba: int | str) -> None:
        super().__init__()
        self.variant = variant
        self.mamba = Mamba2(width, **mamba)
        self.gate_width = nn.Linear(width, width)
        self.gate_height = nn.Linear(width, width)

    def forward(self, x: Tensor, grid: tuple[int, int], joint: int) -> Tensor:
        """Tokens (B, n, l, d) of frames with `grid` = (h̄, w̄) tokens -> (B, n, l, d).

        The first `joint` frames are scanned together, every frame after them is scanned alone.
        """

        def both_axes(projected: Tensor, frames: int, together: bool) -> Tensor:
            tables = spatial_walks(frames, *grid, self.variant, together, x.device)
            return torch.cat([self.mamba.scan(projected, orders) for orders in tables])

        y = _together_and_alone(both_axes, self.mamba.project(x), joint)
        height, width = self.mamba.out_proj(y)
        height = height * self.gate_height(height).sigmoid()
        return torch.addcmul(height, width, self.gate_width(width).sigmoid()).view_as(x)


class TemporalMamba(nn.Module):
    """A causal scan along the frames of each token position (Eq. 10)."""

    def __init__(self, width: int, **mamba: int | str) -> None:
        super().__init__()
        self.mamba = Mamba2(width, **mamba)

    def forward(self, x: Tensor, joint: int) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d); frames after the first `joint` are scanned alone."""

        def over_time(projected: Tensor, frames: int, together: bool) -> Tensor:
            return self.mamba.scan(projected, temporal_walks(frames, x.shape[2], together, x.device))

        y = _together_and_alone(over_time, self.mamba.project(x), joint)
        return self.mamba.out_proj(y[0]).view_as(x)


def _together_and_alone(scan: Callable[[Tensor, int, bool], Tensor], tokens: Tensor, joint: int) -> Tensor:
    """Scan the first `joint` of the frames (B, n, l, P) as one clip, each of the others as a clip of one.

    `scan` takes tokens (B, frames*l, P), their frames and whether these belong together, and returns
    (axes, B, frames*l, d_inner); the parts are joined along the tokens.
    """
    alone = tokens.shape[1] - joint
    if not alone:
        return scan(tokens.flatten(1, 2), joint, True)
    clip, images = tokens[:, :joint].flatten(1, 2), tokens[:, joint:].flatten(1, 2)
    return torch.cat((scan(clip, joint, True), scan(images, alone, False)), dim=2)
