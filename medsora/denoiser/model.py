"""MedSora's denoiser: noisy latents and timesteps in, noise, variance and features out (§3.1, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from medsora.config.choices import MIXINGS, PREDICTIONS
from medsora.config.presets import PRESETS
from medsora.denoiser.block import Block
from medsora.denoiser.embed import PatchEmbedding, TimeEmbedding
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import frame_scans
from medsora.denoiser.velocity import noise_from_velocity
from medsora.denoiser.weights import read_matching_weights
from medsora.errors import BadInput
from medsora.kernels.block_steps import norm
from medsora.spiral import VARIANTS


@dataclass
class MedSoraOutput(BaseOutput):
    """What the denoiser returns.

    Attributes:
        eps: the predicted noise (B, n, C, h, w).
        variance: the learned-range variance channels (B, n, C, h, w), in the loss's own units.
        features: per block the tokens of the clip after the spatial part, (B, f, l, d), unless left out.
    """

    eps: Tensor
    variance: Tensor = None
    features: list[Tensor] = None


class Modulation(NamedTuple):
    """What adaLN makes of the timesteps: per block (B or 1, 1 or n, 9·d), and the last layer's (…, 2·d)."""

    blocks: Sequence[Tensor]
    final: Tensor


class MedSora(ModelMixin, ConfigMixin):
    """The video Mamba diffusion model.

    Args:
        in_channels: C, the latents' channels.
        width: d.
        depth: number of blocks; block i walks spiral variant i mod 8.
        patch: side of a token in latent pixels.
        heads, window, dropout: of the local attention.
        d_state, headdim, expand, d_conv: of every Mamba-2.
        mixing: "isolated" (joint images never exchange information with the clip or one another) or "mixed"
            (one spiral and one temporal scan over clip and images).
        prediction: what the last layer's first channels are: "noise", ε itself, or "velocity" (Salimans & Ho,
            2022), from which ε = √ᾱ·v + √(1 - ᾱ)·z_t follows. Either way the model returns ε; with v an
            untrained model is right about the high noise already, where ε is all but z_t itself.
        backend: how the scans are computed, one of `kernels.mamba2_scan`'s; with "auto" or "triton" a GPU
            takes the rest of a block in fewer kernels, too, while sampling.
        classes: how many labels a clip may have, each with an embedding that is added to that of the time;
            0: none, and no parameter for it.

    Raises:
        BadInput: if the widths do not divide, or `mixing` or `prediction` is unknown.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules: ClassVar = ["A_log", "dt_bias", "D"]
    _no_split_modules: ClassVar = ["Block"]
    _repeated_blocks: ClassVar = ["Block"]

    @register_to_config
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
        backend: str = "auto",
        classes: int = 0,
    ) -> None:
        super().__init__()
        check_settings(width, heads, headdim, expand, mixing, prediction)
        mamba = dict(d_state=d_state, headdim=headdim, expand=expand, d_conv=d_conv, backend=backend)
        self.patches = PatchEmbedding(in_channels, width, patch)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, window=window, dropout=dropout, variant=index % VARIANTS, mamba=mamba)
            for index in range(depth)
        )
        self.final = FinalLayer(width, patch, in_channels, backend)
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row: no label
        self.gradient_checkpointing = False
        initialise(self)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Build `PRESETS[name]` with some of its settings replaced.

        Raises:
            BadInput: if the preset or a setting is unknown.
        """
        if name not in PRESETS:
            raise BadInput(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
        settings = [key for key in signature(cls.__init__).parameters if key != "self"]
        for key in overrides:
            if key not in settings:
                raise BadInput(f"the denoiser has no setting {key!r}; it has {', '.join(settings)}")
        return cls(**PRESETS[name] | overrides)

    @property
    def preset(self) -> str | None:
        """The preset whose sizes this model has, with its number of heads or one (the authors'); or None."""
        usual = signature(type(self).__init__).parameters
        sizes = {key: usual[key].default for settings in PRESETS.values() for key in settings}
        for name, settings in PRESETS.items():
            expected = sizes | settings | ({"heads": 1} if self.config.heads == 1 else {})
            if all(self.config[key] == value for key, value in expected.items()):
                return name
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Self:
        """Load a folder or hub name that `save_pretrained` wrote, strictly: safetensors, never pickles.

        Raises:
            BadInput: if the weights do not fill the model that the folder's config describes.
            OSError: if there are none.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.pop("use_safetensors", None)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, use_safetensors=True, **kwargs
        )
        strays = [key for keys in info.values() for key in keys]
        if strays:
            raise BadInput(
                f"the weights in {pretrained_model_name_or_path} do not fit the config beside them "
                f"(first difference: {strays[0]}); save the model again or take another folder"
            )
        return (model, info) if wants_info else model

    def load_weights(
        self, path: str | PathLike, labels: tuple[Sequence[str], Sequence[str]] | None = None
    ) -> None:
        """Fill this model from a safetensors file, or from a folder that holds one, strictly.

        `labels`, the names of the file's labels and of this model's, matches the embedding's rows by name.

        Raises:
            FileNotFoundError: if there is no such file.
            BadInput: if the file is damaged or holds another model; the sentence names the first difference.
        """
        self.load_state_dict(read_matching_weights(Path(path), self, labels))

    def modulation(self, t: Tensor, labels: Tensor | None = None) -> Modulation:
        """What adaLN makes of timesteps and labels, each (B,) or (B, n). It does not depend on the latents,
        so whoever knows both beforehand computes it once (28.4 of B's 86.5 million parameters)."""
        time = self.time(t if t.ndim == 2 else t[:, None])
        if self.labels is not None:
            labels = torch.full_like(t, self.config.classes) if labels is None else labels
            time = time + self.labels(labels if labels.ndim == 2 else labels[:, None])
        time = nn.functional.silu(time)
        return Modulation([block.modulation(time) for block in self.blocks], self.final.modulation(time))

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        num_images: int = 0,
        modulation: Modulation | None = None,
        labels: Tensor | None = None,
        with_features: bool = True,
    ) -> MedSoraOutput:
        """Predict the noise in `z` and the variance of the reverse step.

        Args:
            z: noisy scaled latents (B, n, C, h, w), h and w divisible by the patch size.
            t: timesteps (B,), or one per latent frame (B, n).
            num_images: how many of the last latent frames are joint images instead of the clip's.
            modulation: `self.modulation(t, labels)`, if it is known already.
            labels: numbers of labels below `classes`, or `classes` for no label: (B,), or one per latent
                frame (B, n); default: no label.
            with_features: whether to return the blocks' features; without, none outlives its block.

        Raises:
            BadInput: if the shapes do not fit.
        """
        self._check(z, t, num_images, labels)
        clip = z.shape[1] - num_images
        joint = clip if self.config.mixing == "isolated" else z.shape[1]
        grid = (z.shape[3] // self.config.patch, z.shape[4] // self.config.patch)

        x = self.patches(z)
        modulation = self.modulation(t, labels) if modulation is None else modulation
        # Blocks differ in their weights alone, so all of them share the first one's tables.
        for block in self.blocks[:1]:
            tables = block.attention.tables(x.shape[2], x.device, _product_dtype(x))
        features = [] if with_features else None
        for block, of_block in zip(self.blocks, modulation.blocks, strict=True):
            scans = frame_scans(z.shape[1], joint, grid, block.spatial.variant, z.device)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, spatial = self._gradient_checkpointing_func(block, x, of_block, scans, tables)
            else:
                x, spatial = block(x, of_block, scans, tables)
            if with_features:
                features.append(spatial[:, :clip])
            del spatial
        eps, variance = self.final(x, modulation.final, grid)
        if self.config.prediction == "velocity":
            eps = noise_from_velocity(eps, z, t)
        return MedSoraOutput(eps=eps, variance=variance, features=features)

    def _check(self, z: Tensor, t: Tensor, num_images: int, labels: Tensor | None) -> None:
        channels, patch = self.config.in_channels, self.config.patch
        if z.ndim != 5 or z.shape[2] != channels:
            raise BadInput(f"latents must be (B, n, {channels}, h, w), not {tuple(z.shape)}")
        if z.shape[3] % patch or z.shape[4] % patch:
            raise BadInput(f"latents of {z.shape[3]}x{z.shape[4]} do not divide into {patch}x{patch} patches")
        per_sample, per_frame = tuple(z.shape[:1]), tuple(z.shape[:2])
        if tuple(t.shape) not in (per_sample, per_frame):
            raise BadInput(f"timesteps must be {per_sample} or {per_frame}, not {tuple(t.shape)}")
        if labels is not None and self.labels is None:
            raise BadInput("this denoiser has no labels (classes is 0): leave them out")
        if labels is not None and tuple(labels.shape) not in (per_sample, per_frame):
            raise BadInput(f"labels must be {per_sample} or {per_frame}, not {tuple(labels.shape)}")
        if not 0 <= num_images < z.shape[1]:
            raise BadInput(f"{num_images} of {z.shape[1]} latent frames cannot be images: a clip must remain")


def check_settings(width: int, heads: int, headdim: int, expand: int, mixing: str, prediction: str) -> None:
    """Raise `BadInput` if the widths do not divide, or `mixing` or `prediction` is unknown."""
    if width % (2 * heads) or width % 4:
        raise BadInput(f"width {width} must be divisible by 4 and by twice the number of heads ({heads})")
    if expand * width % headdim:
        raise BadInput(f"expand * width = {expand * width} must be divisible by headdim {headdim}")
    if mixing not in MIXINGS:
        raise BadInput(f"mixing {mixing!r} is unknown; it is one of {', '.join(MIXINGS)}")
    if prediction not in PREDICTIONS:
        raise BadInput(f"prediction {prediction!r} is unknown; it is one of {', '.join(PREDICTIONS)}")


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Xavier on linear layers, zero on what adaLN-zero keeps silent; Mamba's Δ, A, D stay as drawn."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection = model.patches.projection
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
    nn.init.zeros_(projection.bias)
    if model.labels is not None:
        nn.init.zeros_(model.labels.weight)
    modulations = [block.modulation for block in model.blocks]
    for silent in (*modulations, model.final.modulation, model.final.linear):
        nn.init.zeros_(silent.weight)
        nn.init.zeros_(silent.bias)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear layer's output for tokens x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class FinalLayer(nn.Module):
    """Tokens -> noise and variance: LayerNorm without affine, adaLN, Linear, patches put back in place."""

    def __init__(self, width: int, patch: int, channels: int, backend: str) -> None:
        super().__init__()
        self.patch, self.backend = patch, backend
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Linear(width, 2 * width)
        self.linear = Linear(width, 2 * channels * patch * patch)

    def forward(self, x: Tensor, modulation: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, n, l, d), and `self.modulation` of the time embedding -> two tensors (B, n, C, h, w)."""
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        y = self.linear(norm(x, shift, scale, self.norm, self.backend))
        in_place = "B n (h w) (out C i j) -> out B n C (h i) (w j)"
        return rearrange(y, in_place, h=grid[0], out=2, i=self.patch, j=self.patch).unbind()
