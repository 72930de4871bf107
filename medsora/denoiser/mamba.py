"""Mamba-2 over space and over time (Eq. 8-10): which tokens follow one another; `kernels` computes the scans.

Shapes: B samples, n latent frames, h̄ x w̄ tokens per frame (l = h̄·w̄), d wide inside the model, P wide after
the projection that feeds a scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medsora.denoiser.linear import Linear
from medsora.kernels import mamba2_scan
from medsora.kernels.block_steps import divided, gated_scan, gates
from medsora.spiral import SpatialScan, spatial_orders, temporal_orders

A_RANGE = (1.0, 16.0)
STEP_RANGE = (1e-3, 1e-1)  # Δ
STEP_FLOOR = 1e-4


class FrameScans(NamedTuple):
    """Orders of `kernels.mamba2_scan` for neighbouring frames that are scanned alike."""

    frames: int
    spatial: tuple[Tensor, ...]  # as `spatial_orders` gives them
    temporal: Tensor


def frame_scans(
    frames: int,
    joint: int,
    grid: tuple[int, int],
    variant: int,
    device: torch.device,
    scan: SpatialScan = SpatialScan(),  # noqa: B008 (immutable)
) -> list[FrameScans]:
    """The scans of a block with spiral `variant` over `frames` frames of `grid` = (h̄, w̄) tokens.

    The first `joint` frames are scanned together, every frame after them is scanned alone.
    """
    parts = [(joint, True), (frames - joint, False)]
    return [
        FrameScans(
            count,
            spatial_orders(count, *grid, variant, together, device, scan),
            temporal_orders(count, grid[0] * grid[1], together, device),
        )
        for count, together in parts
        if count
    ]


class Mamba2(nn.Module):
    """The weights of one Mamba-2 layer under `mamba_ssm.modules.mamba2.Mamba2`'s own names, with one group.

    `project`, `scan` and `out_proj` are apart because the projections act on single tokens: tokens that are
    scanned in several orders are projected once.
    """

    def __init__(
        self, width: int, *, d_state: int, headdim: int, expand: int, d_conv: int, backend: str
    ) -> None:
        super().__init__()
        d_inner = expand * width
        heads = d_inner // headdim
        conv_channels = d_inner + 2 * d_state
        self.headdim, self.backend = headdim, backend
        self.in_proj = Linear(width, d_inner + conv_channels + heads, bias=False)
        self.conv1d = nn.Conv1d(conv_channels, conv_channels, d_conv, groups=conv_channels)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = Linear(d_inner, width, bias=False)
        self._initialise_dynamics()

    @torch.no_grad()
    def _initialise_dynamics(self) -> None:
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

        The result still needs `out_proj`, which acts on single tokens too.
        """
        return mamba2_scan(zxbcdt, *self._weights(), orders=orders, **self._settings())

    def gated_scan(self, zxbcdt: Tensor, orders: Tensor) -> tuple[Tensor, Tensor] | None:
        """`scan` as `block_steps.gated_scan` leaves it, or None."""
        return gated_scan(zxbcdt, *self._weights(), orders=orders, **self._settings())

    def _weights(self) -> tuple[Tensor, ...]:
        conv, norm = self.conv1d, self.norm
        return conv.weight, conv.bias, self.dt_bias, self.A_log, self.D, norm.weight

    def _settings(self) -> dict[str, Any]:
        return {"headdim": self.headdim, "eps": self.norm.eps, "backend": self.backend}

    def forward(self, x: Tensor) -> Tensor:
        """A plain causal Mamba-2 layer: (b, L, d) -> (b, L, d)."""
        return self.out_proj(self.scan(self.project(x)))


class SpatialMamba(nn.Module):
    """Bidirectional spiral scans along both axes of the frames, fused by gates (Eq. 8-9).

    One set of Mamba-2 weights serves all four scans. `variant` names the spiral. `axes` and `fusion` are
    switches: with one axis Eq. 9 has one term, and "mean" averages the axes instead of gating them.
    """

    def __init__(
        self, width: int, variant: int, *, axes: str = "both", fusion: str = "gate", **mamba: int | str
    ) -> None:
        super().__init__()
        self.variant = variant
        self.mamba = Mamba2(width, **mamba)
        gated = fusion == "gate"
        self.gate_width = Linear(width, width) if gated and axes != "height" else None
        self.gate_height = Linear(width, width) if gated and axes != "width" else None

    def forward(self, x: Tensor, scans: Sequence[FrameScans]) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d), scanned as in `frame_scans` for this `variant`."""

        def both_axes(projected: Tensor, part: FrameScans) -> Tensor:
            axes = [self.mamba.scan(projected, orders) for orders in part.spatial]
            return axes[0] if len(axes) == 1 else torch.cat(axes)

        y = _part_by_part(both_axes, self.mamba.project(x), scans)
        y = self.mamba.out_proj(y)
        of_axes = [gate for gate in (self.gate_height, self.gate_width) if gate is not None]
        if not of_axes:
            return y.mean(dim=0).view_as(x)
        if len(of_axes) == 1:
            return (y[0] * of_axes[0](y[0]).sigmoid()).view_as(x)
        return gates(y, *of_axes, self.mamba.backend).view_as(x)


class TemporalMamba(nn.Module):
    """A causal scan along the frames of each token position (Eq. 10)."""

    def __init__(self, width: int, **mamba: int | str) -> None:
        super().__init__()
        self.mamba = Mamba2(width, **mamba)

    def forward(self, x: Tensor, scans: Sequence[FrameScans]) -> Tensor:
        """Tokens (B, n, l, d) -> (B, n, l, d), along the frames as in `frame_scans`."""
        return divided(*self.branch(x, scans))

    def branch(self, x: Tensor, scans: Sequence[FrameScans]) -> tuple[Tensor, Tensor | None]:
        """Return `forward`'s tokens, possibly still to be divided, and their divisor."""

        def over_time(projected: Tensor, part: FrameScans) -> Tensor:
            return self.mamba.scan(projected, part.temporal)

        tokens = self.mamba.project(x)
        left = self.mamba.gated_scan(tokens.flatten(1, 2), scans[0].temporal) if len(scans) == 1 else None
        y, mean_square = left or (_part_by_part(over_time, tokens, scans)[0], None)
        return self.mamba.out_proj(y).view_as(x), mean_square


def _part_by_part(
    scan: Callable[[Tensor, FrameScans], Tensor], tokens: Tensor, scans: Sequence[FrameScans]
) -> Tensor:
    """Scan the frames (B, n, l, P) of each part apart; results (axes, B, n·l, d_inner).

    `scan` takes a part's tokens (B, frames·l, P) and gives (axes, B, frames·l, d_inner).
    """
    if len(scans) == 1:
        return scan(tokens.flatten(1, 2), scans[0])
    parts = tokens.split([part.frames for part in scans], dim=1)
    return torch.cat([scan(x.flatten(1, 2), part) for x, part in zip(parts, scans, strict=True)], dim=2)
