"""All randomness of training, derived from (seed, purpose, numbers) instead of from a generator's history.

A resumed run, and a run on another number of processes, therefore draws the same timesteps, noise and clips
without any generator being saved.
"""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import torch

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # its consecutive multiples lie far apart, modulo 1


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a 63-bit seed that depends on every argument."""
    digest = hashlib.blake2b(repr((seed, purpose, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed`: the same numbers on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))


def normal_for(shape: tuple[int, ...], seed: int, purpose: str, sample: int) -> torch.Tensor:
    """Return standard normal noise of `shape` (float32, CPU) that belongs to one global sample number."""
    return torch.randn(shape, generator=generator_for(seed, purpose, sample))


def chance_for(seed: int, purpose: str, sample: int) -> float:
    """Return a number drawn evenly from [0, 1) that belongs to one global sample number."""
    return derive_seed(seed, purpose, sample) / 2**63


def timestep_for(steps: int, seed: int, sample: int, logit_mean: float | None = None) -> int:
    """Return the diffusion timestep in [0, steps) of one global sample number.

    Each is as likely as another, or, with `logit_mean`, log(t / (steps - t)) is normal with this mean and a
    standard deviation of 1 (Esser et al., 2024).

    Multiples of the golden ratio, shifted by a random number of the run: each timestep is as likely as with
    independent draws, but the samples of a batch spread evenly over them, so the loss varies less from batch
    to batch (as the antithetic timesteps of Kingma et al., 2021, at any batch size and number of processes).
    """
    shift = derive_seed(seed, "timestep") / 2**63
    place = math.fmod(shift + sample * GOLDEN_RATIO, 1.0)
    if logit_mean is not None:
        place = 1 / (1 + math.exp(-logit_mean - NormalDist().inv_cdf(place or 2**-63)))
    return int(steps * place)
