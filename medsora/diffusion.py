"""The diffusion process on latents: noising and the hybrid training loss (samplers: `medsora.sampler`).

Symbols: ᾱ_t falls from nearly 1 (t = 0) to nearly 0 (t = T - 1); z_t = √ᾱ_t·z_0 + √(1 - ᾱ_t)·ε (§2.1).
Latents are scaled, `(B, n, C, h, w)`; timesteps are `(B,)`, or `(B, n)` for one per latent frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr

from medsora.config.schema import DIFFUSION_STEPS

TRAIN_STEPS, BETA_START, BETA_END = DIFFUSION_STEPS, 1e-4, 0.02
CLEAN = 0  # timestep of given latents, the one with the least noise
HALF_BIN = 1 / 255  # half the width of the bins in which the last step's likelihood is counted


class DiffusionLoss(NamedTuple):
    """Per sample, each (B,): `total` = `mse` + `vb`, the noise's squared error and the variational term."""

    total: Tensor
    mse: Tensor
    vb: Tensor


class GaussianDiffusion:
    """Linear betas from `beta_start` to `beta_end` over `steps` timesteps, and what follows from them.

    Tables are computed in float64 on the CPU and cast to the data's type: not every device has float64.
    """

    def __init__(
        self, steps: int = TRAIN_STEPS, beta_start: float = BETA_START, beta_end: float = BETA_END
    ) -> None:
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        alpha_bar_before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        # The variance of q(z_{t-1} | z_t, z_0). It is 0 at t = 0, where its logarithm is that of t = 1.
        beta_tilde = beta * (1 - alpha_bar_before) / (1 - alpha_bar)
        self.steps = steps
        self.alpha_bar = alpha_bar
        self._tables = {
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "log_beta": beta.log(),
            "log_beta_tilde": torch.cat([beta_tilde[1:2], beta_tilde[1:]]).log(),
            "mean_of_z_0": beta * alpha_bar_before.sqrt() / (1 - alpha_bar),
            "mean_of_z_t": (1 - beta).sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar),
            "weight_of_noise": torch.ones_like(alpha_bar),
            "weight_of_velocity": 1 / alpha_bar,
            "weight_of_data": (1 - alpha_bar) / alpha_bar,
        }
        self._converted = {
            (name, torch.device("cpu"), torch.float32): table.float() for name, table in self._tables.items()
        }

    def add_noise(self, z_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return z_t. Raises `ValueError` if `t` is neither (B,) nor (B, n)."""
        return self._at("signal", t, z_0) * z_0 + self._at("noise", t, z_0) * noise

    def posterior_mean(self, z_0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the mean of q(z_{t-1} | z_t, z_0)."""
        return self._at("mean_of_z_0", t, z_t) * z_0 + self._at("mean_of_z_t", t, z_t) * z_t

    def log_variance(self, variance: Tensor, t: Tensor) -> Tensor:
        """Return log Σ of the reverse step from the model's variance channels.

        They interpolate between the logarithms of β̃_t (at -1) and β_t (at 1).
        """
        low, high = self._at("log_beta_tilde", t, variance), self._at("log_beta", t, variance)
        share = (variance + 1) / 2
        return share * high + (1 - share) * low

    def error_weight(self, t: Tensor, target: str) -> Tensor:
        """Return the factor that turns ε's squared error at `t` into `target`'s (Salimans & Ho, 2022).

        It is 1 for ε ("noise"), 1/ᾱ for v-prediction ("velocity") and (1 - ᾱ)/ᾱ for z_0 ("data"). With equal
        weights, ε's error at high noise is so small that the picture's coarse structure, which a short run
        must learn first, barely affects the gradient.
        """
        return self._table(f"weight_of_{target}", t.device, torch.float32)[t]

    def hybrid_loss(
        self,
        eps: Tensor,
        variance: Tensor,
        z_0: Tensor,
        z_t: Tensor,
        noise: Tensor,
        t: Tensor,
        *,
        weights: Tensor | None = None,
    ) -> DiffusionLoss:
        """Return the hybrid loss of Nichol & Dhariwal (2021), per sample: error of ε plus variational term.

        The variational term, in bits per dimension and with weight 1, trains the variance alone: the mean in
        it is detached. Its last step (t = 0) is the likelihood of z_0 counted in bins of 2/255, the choice of
        the published latent models of this line (DiT, Latte), but without their open outermost bins: latents,
        unlike pixels, do not end at ±1.

        Args:
            eps, variance: the denoiser's outputs, (B, n, C, h, w).
            z_0, z_t, noise: what `add_noise` was given and returned, of the same shape.
            t: (B,) or (B, n).
            weights: weights of the latent frames, (B, n) or (n,); default: all equal.
        """
        eps, variance, z_0, z_t, noise = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (eps, variance, z_0, z_t, noise)
        )
        mse = (eps - noise).square()

        fixed = eps.detach()
        predicted = (z_t - self._at("noise", t, z_t) * fixed) / self._at("signal", t, z_t)
        mean = self.posterior_mean(predicted, z_t, t)
        true_mean = self.posterior_mean(z_0, z_t, t)
        log_variance = self.log_variance(variance, t)
        divergence = _normal_kl(true_mean, self._at("log_beta_tilde", t, z_t), mean, log_variance)
        last = _binned_log_likelihood(z_0, mean, log_variance)
        vb = torch.where(_per_latent(t, z_t) == 0, -last, divergence) / math.log(2)

        mse, vb = (_weighted_mean(x.flatten(2).mean(2), weights) for x in (mse, vb))
        return DiffusionLoss(mse + vb, mse, vb)

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Look up a table at `t`, shaped (B, 1 or n, 1, 1, 1) and typed like the data."""
        return _per_latent(self._table(name, t.device, like.dtype)[t], like)

    def _table(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a table on `device`, converted once."""
        if (key := (name, device, dtype)) not in self._converted:
            self._converted[key] = self._tables[name].to(dtype).to(device)
        return self._converted[key]


def _per_latent(values: Tensor, like: Tensor) -> Tensor:
    if tuple(values.shape) not in (tuple(like.shape[:1]), tuple(like.shape[:2])):
        raise ValueError(
            f"timesteps of shape {tuple(values.shape)} do not fit latents of shape {tuple(like.shape)}: "
            "give one per sample or one per latent frame"
        )
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def _weighted_mean(per_latent: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return per_latent.mean(1)
    weights = weights.to(per_latent).expand_as(per_latent)
    return (per_latent * weights).sum(1) / weights.sum(1)


def _normal_kl(mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """KL(p || q) of two normal distributions with diagonal covariance, elementwise, in nats."""
    ratio = log_variance_p - log_variance_q
    distance = (mean_p - mean_q).square() * torch.exp(-log_variance_q)
    return 0.5 * (ratio.exp() - 1 - ratio + distance)


def _binned_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log P(x - HALF_BIN < y < x + HALF_BIN), y normal, elementwise, in nats; exact in the far tail too."""
    away = -(x - mean).abs()  # in the left tail differences keep their digits
    scale = torch.exp(-0.5 * log_variance)
    upper, lower = log_ndtr((away + HALF_BIN) * scale), log_ndtr((away - HALF_BIN) * scale)
    return upper + torch.log(-torch.expm1(lower - upper).clamp(max=-1e-12))
