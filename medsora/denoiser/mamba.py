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
from medsora.spiral import scan_orders

A_RANGE = (1.0, 16.0)
STEP_RANGE = (1e-3, 1e-1)  # Δ
STEP_FLOOR = 1e-4


class Mamba2(nn.Module):
    """The weights of one Mamba-2 layer under `mamba_ssm.modules.mamba2.Mamba2`'s own names, with one group.

    `project` and `scan` are apart because the projection looks at single tokens: a caller that scans the same
    tokens in several arrangements projects once and arranges the result.
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
        """Sequences (b, L, P) -> (b, L, d); with `orders` (k, L) the sum of k scans in these orders."""
        y = mamba2_scan(
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
        return self.out_proj(y)

    def forward(self, x: Tensor) -> Tensor:
        """A plain causal Mamba-2 layer: (b, L, d) -> (b, L, d)."""
        return self.scan(self.project(x))


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
        projected = self.mamba.project(x).unflatten(2, grid)
        return _together_and_alone(self._scan, projected, joint)

    def _scan(self, projected: Tensor) -> Tensor:
        """Both axes' scans and their fusion: (b, f, h̄, w̄, P) -> (b, f, l, d)."""
        batch, frames, rows, cols, _ = projected.shape
        by_row = projected.transpose(1, 2)  # (b, h̄, f, w̄, P): per row a sequence over f x w̄
        by_col = projected.permute(0, 3, 1, 2, 4)  # (b, w̄, f, h̄, P): per column a sequence over f x h̄
        if rows == cols:  # the same spiral on both axes: one call instead of two
            y_height, y_width = self._spiral(torch.stack((by_row, by_col)).flatten(0, 1)).chunk(2)
        else:
            y_height, y_width = self._spiral(by_row), self._spiral(by_col)
        y_height = y_height * self.gate_height(y_height).sigmoid()
        y_width = y_width * self.gate_width(y_width).sigmoid()
        y_height = y_height.view(batch, rows, frames, cols, -1).transpose(1, 2)
        y_width = y_width.view(batch, cols, frames, rows, -1).permute(0, 2, 3, 1, 4)
        return (y_height + y_width).flatten(2, 3)

    def _spiral(self, lines: Tensor) -> Tensor:
        """Scan the (f x side) grid of every line of tokens: (b, lines, f, side, P) -> (b·lines, L, d)."""
        orders = scan_orders(*lines.shape[2:4], self.variant, lines.device)
        return self.mamba.scan(lines.flatten(2, 3).flatten(0, 1), orders)


class TemporalMamba(nn.Module):
    """A causal scan along the frames of each token position (Eq. 10)."""

    def __init__(self, width: int, **mamba: int | str) -> None:
        super().__init__()
        self.mamba = Mamba2(width, **mamba)

    def forward(self, x: Tensor, joint: int) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d); frames after the first `joint` are scanned alone."""
        return _together_and_alone(self._scan, self.mamba.project(x), joint)

    def _scan(self, projected: Tensor) -> Tensor:
        """(b, f, l, P) -> (b, f, l, d)."""
        batch, _, tokens, _ = projected.shape
        sequences = projected.transpose(1, 2).flatten(0, 1)
        return self.mamba.scan(sequences).unflatten(0, (batch, tokens)).transpose(1, 2)


def _together_and_alone(scan: Callable[[Tensor], Tensor], frames: Tensor, joint: int) -> Tensor:
    """Scan the first `joint` of the frames (B, n, ...) as one clip, each of the others as a clip of one."""
    if joint == frames.shape[1]:
        return scan(frames)
    clip, images = frames.split((joint, frames.shape[1] - joint), dim=1)
    alone = scan(images.flatten(0, 1).unsqueeze(1)).squeeze(1)
    return torch.cat((scan(clip), alone.unflatten(0, images.shape[:2])), dim=1)
