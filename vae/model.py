"""The frequency-compensated causal VAE of §3.3: video to latents and back.

Shapes: video `(B, F, 3, H, W)`, RGB in [-1, 1]; latents `(B, n, C, h, w)`, where F frames give n latents
(1 -> 1, 8k -> 2k, 8k+1 -> 2k+1) and each side is divided by 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    ModelMixin,  # noqa: F401  diffusers looks for it beside the class that it loads
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from medsora.vae.base import base_from_config, load_base
from medsora.vae.choices import DEFAULT_COMPENSATION
from medsora.vae.compensation import add_compensation, compensation_modules
from medsora.vae.losses import halved
from medsora.vae.video_vae import Generators, VideoVAE, draw


@dataclass
class VAEOutput:
    """One differentiable pass: pixels `(B, F, 3, H, W)` and the unscaled moments `(B, n, C, h, w)`.

    `coarse`, if requested, is decoded from the latents at half their height and width.
    """

    reconstruction: Tensor
    mean: Tensor
    logvar: Tensor
    coarse: Tensor | None = None


class FrequencyCompensatedVAE(VideoVAE):
    """CogVideoX's causal VAE (`self.base`) with the compensation of §3.3 inside (see `vae.compensation`).

    Made by `from_base`, saved and loaded by `save_pretrained` and `from_pretrained` (safetensors), which need
    no base again. Before any training of the compensation it equals its base bit for bit.

    base_config: the settings of `diffusers.AutoencoderKLCogVideoX`.
    compensation: False leaves the base bare, to train one from scratch.
    scaling_factor: what latents are multiplied by; None takes the base's.
    compensation_kind: the decoder's compensation, "causal" or "standard"; models saved before this setting
        existed are causal.
    """

    base_class = AutoencoderKLCogVideoX

    @register_to_config
    def __init__(
        self,
        base_config: Mapping[str, Any],
        compensation: bool = True,
        scaling_factor: float | None = None,
        compensation_kind: str = "causal",
    ):
        super().__init__()
        self.base: AutoencoderKLCogVideoX = base_from_config(base_config, source="base_config")
        if compensation:
            add_compensation(self.base, compensation_kind)
        self.set_scaling_factor(self.base.config.scaling_factor if scaling_factor is None else scaling_factor)

    # Making, loading, saving

    @classmethod
    def from_base(
        cls,
        base: str | Path | Mapping[str, Any],
        *,
        compensation: bool = True,
        compensation_kind: str = DEFAULT_COMPENSATION,
        weights: str | Path | None = None,
    ) -> FrequencyCompensatedVAE:
        """The base of `vae.base.load_base` (its arguments, its errors) with an untrained compensation.

        `compensation_kind` is "causal" or "standard" (`vae.compensation`).
        """
        loaded = load_base(base, weights)
        config = {key: value for key, value in loaded.config.items() if not key.startswith("_")}
        vae = cls(config, compensation=compensation, compensation_kind=compensation_kind)
        of_base = vae.base_state_dict()
        of_base_loaded = loaded.state_dict()
        with torch.no_grad():
            for name, parameter in of_base.items():
                parameter.copy_(of_base_loaded[name])
        return vae.eval()

    def base_settings(self) -> dict[str, Any]:
        """The base's settings, with the scaling factor that was measured."""
        return super().base_settings() | {"scaling_factor": self.scaling_factor}

    # Trainable parameters

    def compensation_parameters(self) -> list[nn.Parameter]:
        """The parameters that the paper trains (§3.3)."""
        return [parameter for _, module in compensation_modules(self) for parameter in module.parameters()]

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's own entries under diffusers' names, as if no compensation were there."""
        inside = tuple(name + "." for name, _ in compensation_modules(self.base))
        return {name: value for name, value in self.base.state_dict().items() if not name.startswith(inside)}

    def freeze_base(self) -> None:
        """Freeze the base: from here on only the compensation receives gradients."""
        self.requires_grad_(False)
        for parameter in self.compensation_parameters():
            parameter.requires_grad_(True)

    def trainable_parameters(self, train: str) -> list[nn.Parameter]:
        """Freeze and unfreeze parameters by `train`; return those that are trained.

        `compensation` is what the paper trains, `decoder` leaves the latents as they are, `all` trains the
        base too. Raises `ValueError` for another word, and for `compensation` where there is none.
        """
        if train == "all":
            self.requires_grad_(True)
            return list(self.parameters())
        if train == "decoder":
            self.requires_grad_(False)
            halves = (self.base.decoder, self.base.post_quant_conv)
            parameters = [parameter for half in halves if half is not None for parameter in half.parameters()]
            for parameter in parameters:
                parameter.requires_grad_(True)
            return parameters
        if train != "compensation":
            raise ValueError(f"train: {train!r} is neither 'compensation', 'decoder' nor 'all'")
        self.freeze_base()
        parameters = self.compensation_parameters()
        if not parameters:
            raise ValueError(
                "train: 'compensation', but this VAE was built without any; choose 'decoder' or 'all'"
            )
        return parameters

    # Video to latents and back

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video `(B, F, 3, H, W)` -> mean and log-variance `(B, n, C, h, w)` of the unscaled latents.

        Raises `ValueError` for a shape that the VAE cannot return unchanged (`check_video_shape`).
        """
        self._check_video(video)
        posteriors = [self.base.encode(part).latent_dist for part in self._slices(video.transpose(1, 2))]
        mean = torch.cat([posterior.mean for posterior in posteriors])
        logvar = torch.cat([posterior.logvar for posterior in posteriors])
        return mean.transpose(1, 2), logvar.transpose(1, 2)

    def forward(
        self, video: Tensor, generator: Generators = None, sample: bool = True, coarse: bool = False
    ) -> VAEOutput:
        """Encode, draw (or take the mean), decode: differentiable from pixels to pixels.

        `coarse` also decodes the latents at half size, for `vae.losses.coarse_loss`.
        """
        mean, logvar = self.encode_moments(video)
        z = draw(mean, logvar, generator) if sample else mean
        return VAEOutput(self._decode(z), mean, logvar, self._decode(halved(z)) if coarse else None)

    def _decode(self, unscaled: Tensor) -> Tensor:
        parts = [self.base.decode(part).sample for part in self._slices(unscaled.transpose(1, 2))]
        return self._clamped(torch.cat(parts).transpose(1, 2))


@torch.no_grad()
def measure_scaling_factor(vae: FrequencyCompensatedVAE, clips: Iterable[Tensor]) -> float:
    """1 / standard deviation of the unscaled latents (drawn, not the mean) over batches `(B, F, 3, H, W)`.

    One number for all channels, as CogVideoX defines it; hand it to `vae.set_scaling_factor`.
    """
    count, total, squares = 0, 0.0, 0.0
    for video in clips:
        mean, logvar = (part.cpu().double() for part in vae.encode_moments(video))  # not all devices have it
        count += mean.numel()
        total += mean.sum().item()
        squares += (mean.square() + logvar.exp()).sum().item()
    if count == 0:
        raise ValueError("no clips to measure the latents' standard deviation on")
    return (squares / count - (total / count) ** 2) ** -0.5
