"""A VQ tokenizer: frames to rows of codes and back, diffusers' VQModel with a normalised codebook.

Latents and codebook rows have length 1, as in LlamaGen's VQ-16: the nearest row is the one with the largest
cosine, and the mean squared distance of both is bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks for it beside the class that it loads
    VQModel,
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from medsora.vae.base import StrictModel, base_from_config, load_base
from medsora.vae.choices import TOKENIZERS

FRAMES_AT_ONCE = 8  # bounds the memory of encoding and decoding without gradients


class TokenizerOutput(NamedTuple):
    """One differentiable pass: pixels `(..., 3, H, W)`, and per code, of N in all, what its loss needs.

    latents: `(N, d)`, normalised, before quantisation.
    rows: `(N, d)`, the codebook's nearest rows, through which gradients reach the codebook; the latents
        themselves without quantisation.
    codes: `(N,)`, the rows' numbers; None without quantisation.
    """

    reconstruction: Tensor
    latents: Tensor
    rows: Tensor
    codes: Tensor | None


class VQTokenizer(StrictModel):
    """diffusers' VQModel (`self.base`) on frames of any number: `(..., 3, H, W)`, RGB in [-1, 1].

    Made by `from_preset` or `from_base`; `save_pretrained` and `from_pretrained` need no base again.

    base_config: the settings of `diffusers.VQModel`.
    quantize: False decodes the normalised latents themselves: the same autoencoder as a yardstick, without
        codes.
    """

    base_class = VQModel

    @register_to_config
    def __init__(self, base_config: Mapping[str, Any], quantize: bool = True):
        super().__init__()
        self.base: VQModel = base_from_config(base_config, "base_config", VQModel)
        if self.base.config.lookup_from_codebook:
            raise ValueError("base_config: lookup_from_codebook is for latents that are codes; leave it out")
        nn.init.normal_(self.codebook)
        self.normalize_codebook()

    # Making

    @classmethod
    def from_preset(cls, name: str, **settings: Any) -> VQTokenizer:
        """A randomly initialised tokenizer by a name in `TOKENIZERS`, in evaluation mode.

        `settings` replace those of `diffusers.VQModel`. Raises `ValueError` for another name.
        """
        if name not in TOKENIZERS:
            raise ValueError(f"{name!r} is no tokenizer's preset; take one of {', '.join(TOKENIZERS)}")
        return cls(dict(TOKENIZERS[name]) | settings).eval()

    @classmethod
    def from_base(
        cls, base: str | Path | Mapping[str, Any], weights: str | Path | None = None, quantize: bool = True
    ) -> VQTokenizer:
        """A preset's name, or the base of `vae.base.load_base` (its arguments, its errors)."""
        if isinstance(base, str) and base in TOKENIZERS:
            base = TOKENIZERS[base]
        if isinstance(base, Mapping) and weights is None:
            return cls(dict(base), quantize).eval()
        loaded = load_base(base, weights, VQModel)
        with torch.device("meta"):
            tokenizer = cls({k: v for k, v in loaded.config.items() if not k.startswith("_")}, quantize)
        tokenizer.base = loaded
        tokenizer.normalize_codebook()
        return tokenizer.eval()

    # Sizes and identity

    @property
    def codebook(self) -> nn.Parameter:
        """`(num_codes, d)`, rows of length 1."""
        return self.base.quantize.embedding.weight

    @property
    def downsampling(self) -> int:
        """Pixels per code along a side."""
        return 2 ** (len(self.base.config.block_out_channels) - 1)

    @property
    def num_codes(self) -> int:
        """Rows of the codebook."""
        return self.base.config.num_vq_embeddings

    @property
    def digest(self) -> str:
        """SHA-256 of what decides a frame's codes (encoder and codebook): the key of cached codes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.base.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.", "quantize.")):
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_video_shape(self, frames: int, height: int, width: int) -> None:
        """Raise `ValueError`, naming the next valid sizes, unless `downsampling` divides both sides."""
        if frames < 1:
            raise ValueError(f"{frames} frames: a video has at least 1")
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.downsampling:
                below = side // self.downsampling * self.downsampling
                sizes = [str(size) for size in (below, below + self.downsampling) if size > 0]
                raise ValueError(
                    f"{name} {side}: sides must be divisible by {self.downsampling}; valid are nearby "
                    f"{' and '.join(sizes)}"
                )

    @torch.no_grad()
    def normalize_codebook(self) -> None:
        """Give every row of the codebook length 1."""
        self.codebook.copy_(F.normalize(self.codebook, dim=1))

    def trainable_parameters(self, train: str = "all") -> list[nn.Parameter]:
        """Return what learns: everything, but the codebook only with quantisation.

        Raises `ValueError` for anything but "all".
        """
        if train != "all":
            raise ValueError(f"train: {train!r}, but a tokenizer is trained whole; choose 'all'")
        self.requires_grad_(True)
        self.codebook.requires_grad_(self.config.quantize)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # Frames to codes and back

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `(..., 3, H, W)` -> codes, long `(..., H / downsampling, W / downsampling)`.

        Raises `ValueError` for sides that `downsampling` does not divide, and without quantisation.
        """
        if not self.config.quantize:
            raise ValueError("this autoencoder was built without quantisation (quantize: false): no codes")
        self._check_frames(frames)
        parts = [self._nearest(self._latents(part)) for part in self._parts(frames, 3)]
        return torch.cat(parts).unflatten(0, frames.shape[:-3])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `(..., h, w)` -> frames `(..., 3, H, W)`, clamped to [-1, 1] unless training."""
        if not self.config.quantize:
            raise ValueError("this autoencoder was built without quantisation (quantize: false): no codes")
        parts = [self._decode(self._rows(part)) for part in self._parts(codes, 2)]
        return self._clamped(torch.cat(parts).unflatten(0, codes.shape[:-2]))

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Frames `(..., 3, H, W)` as they come back, through codes if there are any."""
        if self.config.quantize:
            return self.decode(self.encode(frames))
        self._check_frames(frames)
        parts = [self._decode(self._latents(part)) for part in self._parts(frames, 3)]
        return self._clamped(torch.cat(parts).unflatten(0, frames.shape[:-3]))

    def forward(self, frames: Tensor) -> TokenizerOutput:
        """Encode, quantise, decode: differentiable from pixels to pixels, straight through the codes."""
        self._check_frames(frames)
        z = self._latents(frames.flatten(0, -4))
        latents = z.movedim(1, -1).flatten(0, 2)
        rows, codes = latents, None
        if self.config.quantize:
            codes = self._nearest(z)
            rows = self._rows(codes).movedim(1, -1).flatten(0, 2)
            z = z + (self._rows(codes) - z).detach()
            codes = codes.flatten()
        decoded = self._clamped(self._decode(z).unflatten(0, frames.shape[:-3]))
        return TokenizerOutput(decoded, latents, rows, codes)

    def _check_frames(self, frames: Tensor) -> None:
        if frames.dim() < 4 or frames.shape[-3] != 3:
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} cannot be encoded: expected (..., 3, H, W)"
            )
        self.check_video_shape(1, *frames.shape[-2:])

    def _latents(self, frames: Tensor) -> Tensor:
        """`(N, 3, H, W)` -> `(N, d, h, w)` of length 1 along d, float32 (bf16 confuses near rows)."""
        return F.normalize(self.base.encode(frames).latents.float(), dim=1)

    def _nearest(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            rows = F.normalize(self.codebook.float(), dim=1)
            return (latents.detach().movedim(1, -1) @ rows.T).argmax(-1)

    def _rows(self, codes: Tensor) -> Tensor:
        """`(N, h, w)` -> `(N, d, h, w)`."""
        return F.normalize(F.embedding(codes, self.codebook), dim=-1).movedim(-1, 1).contiguous()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.base.decode(latents.to(self.dtype), force_not_quantize=True).sample

    @staticmethod
    def _parts(batch: Tensor, dims: int) -> tuple[Tensor, ...]:
        """All frames, each of the last `dims` dimensions: a few at a time where no gradients flow."""
        frames = batch.flatten(0, -dims - 1)
        return frames.split(max(len(frames), 1) if torch.is_grad_enabled() else FRAMES_AT_ONCE)
