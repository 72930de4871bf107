"""MedSora's denoiser: noisy latents and timesteps in, noise, variance and features out (§3.1, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it beside the class that it loads
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from medsora.config.choices import MIXINGS, PREDICTIONS
from medsora.config.presets import PRESETS
from medsora.config.switches import PAPER, check_switches
from medsora.denoiser.base import Denoiser, Modulation
from medsora.denoiser.block import Block
from medsora.denoiser.embed import PatchEmbedding, TimeEmbedding
from medsora.denoiser.linear import Linear
from medsora.denoiser.mamba import frame_scans
from medsora.denoiser.velocity import noise_from_velocity
from medsora.errors import BadInput
from medsora.kernels.block_steps import Residual, add_norm
from medsora.spiral import VARIANTS, SpatialScan


@dataclass
class MedSoraOutput(BaseOutput):
    """Output of the denoiser.

    Attributes:
        eps: the predicted noise (B, n, C, h, w).
        variance: the learned-range variance channels (B, n, C, h, w), in the loss's own units.
        features: per block the tokens of the clip after the spatial part, (B, f, l, d), unless left out.
        image_features: the same of the joint images, (B, n - f, l, d).
    """

    eps: Tensor
    variance: Tensor = None
    features: list[Tensor] = None
    image_features: list[Tensor] = None


class MedSora(Denoiser):
    """The video Mamba diffusion model.

    Args:
        in_channels: C, the latents' channels.
        width: d.
        depth: number of blocks; block i scans along spiral variant i mod 8.
        patch: side of a token in latent pixels.
        heads, window, dropout: settings of the local attention.
        d_state, headdim, expand, d_conv: settings of every Mamba-2 layer.
        mixing: "isolated" (joint images never exchange information with the clip or one another) or "mixed"
            (one spiral and one temporal scan over clip and images).
        prediction: what the last layer's first channels are: "noise", ε itself, or "velocity" (Salimans & Ho,
            2022), from which ε = √ᾱ·v + √(1 - ᾱ)·z_t follows. Either way the model returns ε; with v an
            untrained model is right about the high noise already, where ε is all but z_t itself.
        backend: how the scans are computed, one of `kernels.mamba2_scan`'s; with "auto" or "triton" a GPU
            takes the rest of a block in fewer kernels, too, while sampling.
        classes: how many labels a clip may have, each with an embedding that is added to that of the time;
            0: none, and no parameter for it.
        spatial, temporal: "mamba", or "attention" over the tokens of a frame and over the frames of a token's
            position (`medsora.denoiser.global_attention`); `temporal` may be "none".
        local_attention: whether there is any (Eq. 6-7).
        scan, axes, directions: orders of the spatial Mamba (Eq. 8): "spiral", "raster" or "snake", along
            "both" axes, rows ("height") or columns ("width"), in "both" directions or "forward".
        fusion: how both axes are combined: "gate" (Eq. 9) or "mean".
        prior_width: channels of the image prior whose adapter is trained (`add_adapter`); 0: no adapter.

    Raises:
        BadInput: if the widths do not divide, or a word is unknown or does not fit another one.
    """

    presets: ClassVar = PRESETS
    _keep_in_fp32_modules: ClassVar = ["A_log", "dt_bias", "D"]

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
        spatial: str = PAPER["spatial"],
        temporal: str = PAPER["temporal"],
        local_attention: bool = PAPER["local_attention"],
        scan: str = PAPER["scan"],
        axes: str = PAPER["axes"],
        directions: str = PAPER["directions"],
        fusion: str = PAPER["fusion"],
        prior_width: int = 0,
    ) -> None:
        super().__init__()
        check_settings(self.config)
        mamba = dict(d_state=d_state, headdim=headdim, expand=expand, d_conv=d_conv, backend=backend)
        self.patches = PatchEmbedding(in_channels, width, patch)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads=heads,
                window=window,
                dropout=dropout,
                variant=index % VARIANTS,
                mamba=mamba,
                switches={name: self.config[name] for name in PAPER},
            )
            for index in range(depth)
        )
        self.final = FinalLayer(width, patch, in_channels, backend)
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row: no label
        self.gradient_checkpointing = False
        initialise(self)
        self.add_adapter(prior_width)

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
            local = block.attention
            tables = None if local is None else local.tables(x.shape[2], x.device, _product_dtype(x))
        scan = SpatialScan(self.config.scan, self.config.axes, self.config.directions)
        features, image_features = ([], []) if with_features else (None, None)
        for block, of_block in zip(self.blocks, modulation.blocks, strict=True):
            scans = frame_scans(z.shape[1], joint, grid, block.variant, z.device, scan)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, spatial = self._gradient_checkpointing_func(block, x, of_block, scans, tables)
            else:
                x, spatial = block(x, of_block, scans, tables)
            if with_features:
                features.append(spatial[:, :clip])
                image_features.append(spatial[:, clip:])
            del spatial
        eps, variance = self.final(x, modulation.final, grid)
        if self.config.prediction == "velocity":
            eps = noise_from_velocity(eps, z, t)
        return MedSoraOutput(eps, variance, features, image_features)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `BadInput` if the widths do not divide, or a word is unknown or does not fit another one."""
    width, heads, headdim, expand = (settings[key] for key in ("width", "heads", "headdim", "expand"))
    mixing, prediction = settings["mixing"], settings["prediction"]
    check_switches(settings)
    if width % (2 * heads) or width % 4:
        raise BadInput(f"width {width} must be divisible by 4 and by twice the number of heads ({heads})")
    if expand * width % headdim:
        raise BadInput(f"expand * width = {expand * width} must be divisible by headdim {headdim}")
    if headdim % 2 and "attention" in (settings["spatial"], settings["temporal"]):
        raise BadInput(f"headdim {headdim} must be even: with attention instead of Mamba it turns in pairs")
    if mixing not in MIXINGS:
        raise BadInput(f"mixing {mixing!r} is unknown; it is one of {', '.join(MIXINGS)}")
    if prediction not in PREDICTIONS:
        raise BadInput(f"prediction {prediction!r} is unknown; it is one of {', '.join(PREDICTIONS)}")


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Xavier for linear layers, zero for adaLN-zero and the last layer; Mamba's Δ, A, D stay as drawn."""
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

    def forward(
        self, x: Tensor | Residual, modulation: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return two tensors (B, n, C, h, w): the prediction and the variance channels.

        `x` are a block's tokens (B, n, l, d), `modulation` is `self.modulation` of the time embedding.
        """
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        y = self.linear(add_norm(x, shift, scale, self.norm, self.backend)[1])
        in_place = "B n (h w) (out C i j) -> out B n C (h i) (w j)"
        return rearrange(y, in_place, h=grid[0], out=2, i=self.patch, j=self.patch).unbind()
