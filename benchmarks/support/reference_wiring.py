"""The public wiring of this model, made anew from its description: what the speed-ups are measured against.

Same weights, same numbers, other ways. It is `medsora.denoiser.plain` (joint images lie in the same spiral as
the clip, so sampling carries them along; q, k and v are three projections; windows of keys are copied three
times over; a block scans four times, two axes in two directions, each scan followed by its own output
projection; the temporal scan runs on transposed tokens; adaLN is computed in every step), but tokens are
projected once for all four scans, gathered by permutations that are Python lists, and scanned the fastest
way at hand. Not for use: `tests/benchmarks/support/test_reference_wiring.py` holds it to the numbers of
`MedSora` with `mixing="mixed"`, which scans along the same spirals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsora.denoiser import MedSora
from medsora.denoiser.plain import Mamba2, PlainMedSora, SpatialMamba
from medsora.kernels import mamba2_scan, mamba_ssm_backend
from medsora.spiral import spiral_order

SETTINGS = signature(PlainMedSora).parameters.keys() - {"use_mamba_ssm"}
Scan = Callable[[Mamba2, Tensor], Tensor]  # (weights, projected sequences (S, l, P)) -> (S, l, d_inner)


def matrix_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """A good scan of short sequences in plain PyTorch: library convolution, one matrix per head, D apart."""
    heads, d_inner, channels = mamba.D.numel(), mamba.norm.weight.numel(), mamba.conv1d.bias.numel()
    d_state, length = (channels - d_inner) // 2, zxbcdt.shape[1]
    z, xBC, dt = zxbcdt.split([d_inner, channels, heads], dim=-1)
    taps = mamba.conv1d.weight
    xBC = F.conv1d(xBC.mT, taps, mamba.conv1d.bias, padding=taps.shape[2] - 1, groups=channels)
    x, B, C = F.silu(xBC[..., :length].mT).split([d_inner, d_state, d_state], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    dt = F.softplus(dt + mamba.dt_bias)  # (S, l, heads)
    reached = (dt * -torch.exp(mamba.A_log)).cumsum(1).mT
    past = torch.ones(length, length, dtype=torch.bool, device=z.device).tril()
    log_decay = (reached.unsqueeze(-1) - reached.unsqueeze(-2)).masked_fill(~past, -torch.inf)
    kernel = (C @ B.mT).unsqueeze(1) * log_decay.exp() * dt.mT.unsqueeze(-2)
    y = (kernel.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2)
    y = (y + x * mamba.D[:, None]).flatten(-2)
    return F.rms_norm(y * F.silu(z), (d_inner,), mamba.norm.weight, mamba.norm.eps).to(zxbcdt.dtype)


def torch_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """Our own scan in plain PyTorch (`kernels.matrix.scan`), on sequences that lie one after another."""
    settings = {"headdim": mamba.headdim, "eps": mamba.norm.eps, "backend": "torch"}
    return mamba2_scan(zxbcdt, *_weights(mamba), **settings)


def package_scan(mamba: Mamba2, zxbcdt: Tensor) -> Tensor:
    """The package mamba-ssm's kernels, on a GPU (which: `kernels.mamba_ssm_backend.function_in_use`)."""
    return mamba_ssm_backend.scan_sequences(zxbcdt, *_weights(mamba), mamba.headdim, mamba.norm.eps)


def _weights(mamba: Mamba2) -> tuple[Tensor, ...]:
    conv, norm = mamba.conv1d, mamba.norm
    return conv.weight, conv.bias, mamba.dt_bias, mamba.A_log, mamba.D, norm.weight


@lru_cache(maxsize=64)
def _spiral_lists(frames: int, side: int, variant: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """The spiral over frames x side, its reverse, and the inverses of both, as Python lists."""
    forward = spiral_order(frames, side, variant)
    backward = forward.flip(0)
    return tuple(order.tolist() for order in (forward, backward, forward.argsort(), backward.argsort()))


class ReferenceWiring(PlainMedSora):
    """`PlainMedSora` around a `MedSora`'s own parameters; `scan` computes one scan."""

    def __init__(self, model: MedSora, scan: Scan = matrix_scan) -> None:
        settings = {name: getattr(model.config, name) for name in SETTINGS}
        with torch.device("meta"):
            super().__init__(**settings, use_mamba_ssm=False)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.train(model.training)
        for block in self.blocks:
            block.spatial = ReferenceSpatialMamba(block.spatial)
            for part in (block.spatial, block.temporal):
                part.mamba.scan = partial(scan, part.mamba)

    def compile_blocks(self) -> None:
        """Put the blocks through torch.compile."""
        for block in self.blocks:
            block.compile(dynamic=False)


class ReferenceSpatialMamba(SpatialMamba):
    """Eq. 8-9 of tokens that are projected once, before they are copied, and put in order by Python lists."""

    def __init__(self, plain: SpatialMamba) -> None:
        nn.Module.__init__(self)
        self.variant, self.mamba = plain.variant, plain.mamba
        self.gate_width, self.gate_height = plain.gate_width, plain.gate_height

    def forward(self, z: Tensor, grid: tuple[int, int]) -> Tensor:
        """(b, f, l, d) -> (b, f, l, d)."""
        return super().forward(self.mamba.in_proj(z), grid)

    def spiral_scan(self, z: Tensor, f: int, side: int) -> Tensor:
        """Projected tokens (b̂, l̂, P) -> (b̂, l̂, d); each direction has an output projection of its own."""
        there, back, undo_there, undo_back = _spiral_lists(f, side, self.variant)
        y_bar, y_hat = (self.mamba.out_proj(self.mamba.scan(z[:, order])) for order in (there, back))
        return y_bar[:, undo_there] + y_hat[:, undo_back]
