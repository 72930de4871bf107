"""Velocity instead of noise as what the network's last layer gives (Salimans & Ho, 2022, appendix D)."""

from __future__ import annotations

import torch
from torch import Tensor

from medsora.diffusion import GaussianDiffusion
from medsora.tables import kept_table


def noise_from_velocity(velocity: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """ε = √ᾱ_t·v + √(1 - ᾱ_t)·z_t, in float32 at least.

    At high noise ε differs from z_t by less than a half-precision digit.

    Args:
        velocity, z: (B, n, C, h, w).
        t: timesteps (B,), or (B, n) for one per latent frame.
    """
    exact = torch.promote_types(z.dtype, torch.float32)
    signal, noise = (
        table[t].reshape(*t.shape, *[1] * (z.ndim - t.ndim)) for table in _shares(z.device, exact)
    )
    return torch.addcmul(noise * z.to(exact), signal, velocity.to(exact))


@kept_table
def _shares(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 - ᾱ) of every timestep, computed in float64 on the CPU."""
    alpha_bar = GaussianDiffusion().alpha_bar
    return tuple(table.sqrt().to(dtype).to(device) for table in (alpha_bar, 1 - alpha_bar))
