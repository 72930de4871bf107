"""The frequency-compensated causal VAE of §3.3: video to latents and back.

Shapes: video `(B, F, 3, H, W)`, RGB in [-1, 1]; latents `(B, n, C, h, w)`, where F frames give n latents
(1 -> 1, 8k -> 2k, 8k+1 -> 2k+1) and each side is divided by 8. `scale` and `unscale` are the only two places
that know `scaling_factor`: everything outside works on scaled latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLCogVideoX, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from medsora.vae import shapes
from medsora.vae.base import base_from_config, load_base
from medsora.vae.choices import DEFAULT_COMPENSATION
from medsora.vae.compensation import add_compensation, compensation_modules
from medsora.vae.losses import halved

Generators = torch.Generator | Sequence[torch.Generator] | None

VIDEOS_AT_ONCE = 4  # without gradients: what bounds the memory of encoding and decoding


@dataclass
class VAEOutput:
    """One differentiable pass: pixels `(B, F, 3, H, W)` and the unscaled moments `(B, n, C, h, w)`.

    `coarse`, if asked for, is what the decoder makes of the latents at half their height and width.
    """

    reconstruction: Tensor
    mean: Tensor
    logvar: Tensor
    coarse: Tensor | None = None


class FrequencyCompensatedVAE(ModelMixin, ConfigMixin):
    """CogVideoX's causal VAE (`self.base`) with the compensation of §3.3 inside (see `vae.compensation`).

    Made by `from_base`, saved and loaded by `save_pretrained` and `from_pretrained` (safetensors), which need
    no base again. Before any training of the compensation it equals its base bit for bit.

    base_config: the settings of `diffusers.AutoencoderKLCogVideoX`.
    compensation: False leaves the base bare, to train one from scratch.
    scaling_factor: what latents are multiplied by; None takes the base's.
    compensation_kind: the decoder's compensation, "causal" or "standard"; models saved before this setting
        existed are causal.
    """

    _supports_gradient_checkpointing = True

    # Which videos it takes and what its latents stand for; `vae.shapes` explains the numbers.
    frames_per_latent: ClassVar[int] = shapes.FRAMES_PER_LATENT
    frames_per_chunk: ClassVar[int] = shapes.FRAMES_PER_CHUNK  # that it encodes together
    pixels_per_latent: ClassVar[int] = shapes.PIXELS_PER_LATENT  # along a side
    frames_to_latents = staticmethod(shapes.frames_to_latents)
    check_video_shape = staticmethod(shapes.check_video_shape)

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

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> FrequencyCompensatedVAE:
        """A VAE that `save_pretrained` wrote, strictly: keys that do not fit are a `ValueError`.

        `options` are diffusers' own (`subfolder`, `torch_dtype`, ...); only safetensors are read, never
        pickles. `OSError` where nothing can be read.
        """
        with_info = options.pop("output_loading_info", False)
        options.pop("use_safetensors", None)
        try:
            vae, loading = super().from_pretrained(
                path, output_loading_info=True, use_safetensors=True, **options
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{path}: no whole saved VAE there ({reason}); save it again") from error
        wrong = {kind: keys for kind, keys in loading.items() if keys}
        if wrong:
            kind, keys = next(iter(wrong.items()))
            raise ValueError(f"{path}: the weights do not fit config.json ({kind}: {next(iter(keys))!r})")
        return (vae, loading) if with_info else vae

    def save_base(self, config: str | Path, weights: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the base alone, without compensation, as `load_base(config, weights)` reads it again.

        `config` becomes a JSON file with the scaling factor in it, `weights` a safetensors file in `dtype`.
        """
        settings = dict(self.config.base_config) | {"scaling_factor": self.scaling_factor}
        Path(config).write_text(json.dumps(settings, indent=2) + "\n")
        state = {name: value.detach().to("cpu", dtype) for name, value in self.base_state_dict().items()}
        save_file(state, weights, metadata={"format": "pt"})

    # Which parameters learn

    def compensation_parameters(self) -> list[nn.Parameter]:
        """The parameters that the paper trains (§3.3)."""
        return [parameter for _, module in compensation_modules(self) for parameter in module.parameters()]

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's own entries under diffusers' names, as if no compensation were there."""
        inside = tuple(name + "." for name, _ in compensation_modules(self.base))
        return {name: value for name, value in self.base.state_dict().items() if not name.startswith(inside)}

    def freeze_base(self) -> None:
        """Only the compensation gets gradients from here on."""
        self.requires_grad_(False)
        for parameter in self.compensation_parameters():
            parameter.requires_grad_(True)

    def trainable_parameters(self, train: str) -> list[nn.Parameter]:
        """Freeze and thaw as `train` says (`compensation`, or `all` for the base too); return what learns.

        Raises `ValueError` for another word, and for `compensation` where there is none.
        """
        if train == "all":
            self.requires_grad_(True)
            return list(self.parameters())
        if train != "compensation":
            raise ValueError(f"train: {train!r} is neither 'compensation' nor 'all'")
        self.freeze_base()
        parameters = self.compensation_parameters()
        if not parameters:
            raise ValueError("train: 'compensation', but this VAE was built without any; choose 'all'")
        return parameters

    # Sizes and scale

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.base.config.latent_channels

    @property
    def scaling_factor(self) -> float:
        """1 / standard deviation of the latents, so that the denoiser sees about unit variance."""
        return self.config.scaling_factor

    def set_scaling_factor(self, factor: float) -> None:
        """Keep a measured factor (`measure_scaling_factor`) in the config that is saved."""
        self.register_to_config(scaling_factor=float(factor))

    def scale(self, z: Tensor) -> Tensor:
        """The base's latents -> what the denoiser works on."""
        return z * self.scaling_factor

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return z / self.scaling_factor

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(n, C, h, w) of a video's latents. Raises `ValueError` as `check_video_shape`."""
        self.check_video_shape(frames, height, width)
        sides = (side // self.pixels_per_latent for side in (height, width))
        return self.frames_to_latents(frames), self.latent_channels, *sides

    # Video to latents and back

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video `(B, F, 3, H, W)` -> mean and log-variance `(B, n, C, h, w)` of the unscaled latents.

        Raises `ValueError` for a shape that the VAE cannot return unchanged (`check_video_shape`).
        """
        _check_video(video)
        posteriors = [self.base.encode(part).latent_dist for part in self._slices(video.transpose(1, 2))]
        mean = torch.cat([posterior.mean for posterior in posteriors])
        logvar = torch.cat([posterior.logvar for posterior in posteriors])
        return mean.transpose(1, 2), logvar.transpose(1, 2)

    def sample_latents(
        self, mean: Tensor, logvar: Tensor, generator: Generators = None, noise: Tensor | None = None
    ) -> Tensor:
        """Scaled latents drawn from the moments; `noise` (same shape, unit normal) replaces the generator."""
        return self.scale(_sample(mean, logvar, generator, noise))

    def encode(self, video: Tensor, *, sample: bool = False, generator: Generators = None) -> Tensor:
        """Video `(B, F, 3, H, W)` -> scaled latents `(B, n, C, h, w)`: the mean, or a draw if `sample`."""
        mean, logvar = self.encode_moments(video)
        return self.sample_latents(mean, logvar, generator) if sample else self.scale(mean)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents `(B, n, C, h, w)` -> pixels `(B, F, 3, H, W)`, clamped unless training.

        A clamped pixel that was infinite is NaN: what overflowed does not pass for black or white.
        """
        if z.dim() != 5 or z.shape[2] != self.latent_channels:
            raise ValueError(
                f"latents of shape {tuple(z.shape)} cannot be decoded: "
                f"expected (B, n, {self.latent_channels}, h, w)"
            )
        return self._decode(self.unscale(z))

    def forward(
        self, video: Tensor, generator: Generators = None, sample: bool = True, coarse: bool = False
    ) -> VAEOutput:
        """Encode, draw (or take the mean), decode: differentiable from pixels to pixels.

        `coarse` also decodes the latents at half size, for `vae.losses.coarse_loss`.
        """
        mean, logvar = self.encode_moments(video)
        z = _sample(mean, logvar, generator) if sample else mean
        return VAEOutput(self._decode(z), mean, logvar, self._decode(halved(z)) if coarse else None)

    def _decode(self, unscaled: Tensor) -> Tensor:
        parts = [self.base.decode(part).sample for part in self._slices(unscaled.transpose(1, 2))]
        video = torch.cat(parts).transpose(1, 2)
        return video if self.training else video.clamp(-1, 1).where(video.isfinite(), torch.nan)

    @staticmethod
    def _slices(batch: Tensor) -> Sequence[Tensor]:
        """The whole batch where gradients flow, else even parts of a few videos.

        Even, so that none is left alone: on a CPU, PyTorch gives a lone small video to a convolution that is
        several times slower than the one for two.
        """
        parts = 1 if torch.is_grad_enabled() else -(-batch.shape[0] // VIDEOS_AT_ONCE)
        return batch.tensor_split(parts)


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


def _check_video(video: Tensor) -> None:
    if video.dim() != 5 or video.shape[2] != 3:
        raise ValueError(f"a video of shape {tuple(video.shape)} cannot be encoded: expected (B, F, 3, H, W)")
    shapes.check_video_shape(video.shape[1], video.shape[3], video.shape[4])


def _sample(
    mean: Tensor, logvar: Tensor, generator: Generators = None, noise: Tensor | None = None
) -> Tensor:
    if noise is None:
        generator = list(generator) if isinstance(generator, Sequence) else generator
        first = generator[0] if isinstance(generator, list) else generator
        on_host = first is not None and first.device.type == "cpu"
        place = torch.device("cpu") if on_host else mean.device
        noise = randn_tensor(mean.shape, generator=generator, device=place, dtype=mean.dtype)
        if on_host and mean.is_cuda:  # from pinned memory, so that the host need not wait
            noise = noise.pin_memory().to(mean.device, non_blocking=True)
    return mean + torch.exp(0.5 * logvar) * noise
