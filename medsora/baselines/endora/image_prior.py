"""Endora's prior: aligns the denoiser's spatial features with DINO features of the frames themselves.

As the released code does it: the tokens of four DINO layers, brought to the denoiser's grid by a trained 2x2
convolution, are compared by `image_alignment_loss`. Joint images have a target each, like the clip's frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsora.flow_prior.choices import IMAGE_SOURCES
from medsora.flow_prior.dino import DinoEncoder
from medsora.flow_prior.prior import average_frames

COMPARED = 4  # number of aligned layers: in DINO's 12, those numbered 2, 5, 8 and 11
MAX_PAIRED = 12  # number of blocks that they are spread over: in XL's 14, too, blocks 2, 5, 8 and 11
SIDE = 2  # side of the square of prior positions that the adapter merges into one token


class ImagePrior(nn.Module):
    """Target features of the denoiser from a video's frames; frozen.

    Args:
        encoder: DINO; the published one is ViT-S/8. Frames enter it in [-1, 1], as in the released code.
        num_features: how many features the denoiser returns.
        source: "tokens" (after the final norm: the released code) or "attention" (the class token's attention
            to every patch, per head: the paper's text).

    Raises:
        ValueError: an unknown `source`.
    """

    def __init__(self, encoder: DinoEncoder, num_features: int, source: str = "tokens") -> None:
        super().__init__()
        if source not in IMAGE_SOURCES:
            raise ValueError(f"source {source!r} is unknown: expected one of {', '.join(IMAGE_SOURCES)}.")
        self.encoder, self.source, self.num_features = encoder, source, num_features
        paired = min(num_features, MAX_PAIRED)
        self.layer_of = {
            max(k * paired // COMPARED - 1, 0): max(k * encoder.depth // COMPARED - 1, 0)
            for k in range(1, COMPARED + 1)
        }
        self.distinct_layers = sorted(set(self.layer_of.values()))

    @property
    def untrained(self) -> bool:
        """Whether the encoder has random weights, so that the alignment loss carries no signal."""
        return self.encoder.untrained

    @property
    def width(self) -> int:
        """D, the channels of its maps: features, or heads."""
        network = self.encoder.network
        return network.embed_dim if self.source == "tokens" else network.blocks[0].attn.num_heads

    def target_shape(self, grid: tuple[int, int, int], width: int) -> tuple[int, ...]:
        """The shape (f, D, 2h̄, 2w̄) of one layer's target of a clip, see `distinct_targets`."""
        return grid[0], self.width, SIDE * grid[1], SIDE * grid[2]

    @torch.no_grad()
    def distinct_targets(
        self,
        video: Tensor,
        flow: Tensor | None = None,
        *,
        latent_frames: int,
        grid: tuple[int, int],
        width: int,
    ) -> list[Tensor]:
        """Return one target (B, f, D, 2h̄, 2w̄) for each of `distinct_layers`; arguments are `FlowPrior`'s.

        The last of the F+1 frames, which is the flow's, is left out; `flow` and `width` are not used.
        """
        clips = [self.picture_targets(frames, latent_frames, grid) for frames in video[:, :-1]]
        return [torch.stack(of_layer) for of_layer in zip(*clips, strict=True)]

    @torch.no_grad()
    def picture_targets(self, frames: Tensor, latents: int, grid: tuple[int, int]) -> list[Tensor]:
        """Return (n, D, 2h̄, 2w̄) for each of `distinct_layers`, of pictures (K, 3, H, W) in [-1, 1].

        Joint images, or a clip's frames: K of them become n `latents`, whose targets are means.
        """
        maps = self._attention(frames) if self.source == "attention" else self._tokens(frames)
        averages = (average_frames(of_layer, latents) for of_layer in maps)
        size = [SIDE * side for side in grid]
        return [F.interpolate(a, size=size, mode="bilinear", align_corners=False) for a in averages]

    def pair_with_blocks(self, of_layers: Sequence[Tensor]) -> list[Tensor | None]:
        """Return for every feature its layer's tensor or None; `of_layers` has one per distinct layer."""
        by_layer = dict(zip(self.distinct_layers, of_layers, strict=True))
        return [by_layer.get(self.layer_of.get(number)) for number in range(self.num_features)]

    def _tokens(self, frames: Tensor) -> list[Tensor]:
        return self.encoder.network.forward_intermediates(
            self.encoder.fitted(frames),
            indices=self.distinct_layers,
            norm=True,
            stop_early=True,
            intermediates_only=True,
        )

    def _attention(self, frames: Tensor) -> list[Tensor]:
        network, inputs = self.encoder.network, {}
        attentions = {layer: network.blocks[layer].attn for layer in self.distinct_layers}
        hooks = [
            attention.register_forward_pre_hook(
                lambda _, given, layer=layer: inputs.update({layer: given[0]})
            )
            for layer, attention in attentions.items()
        ]
        try:
            like = self._tokens(frames)
        finally:
            for hook in hooks:
                hook.remove()
        maps = []
        for tokens, (layer, attention) in zip(like, attentions.items(), strict=True):
            sizes = (3, attention.num_heads, attention.head_dim)
            q, k, _ = attention.qkv(inputs[layer]).unflatten(-1, sizes).permute(2, 0, 3, 1, 4)
            q, k = attention.q_norm(q), attention.k_norm(k)
            weights = (q[:, :, :1] * attention.scale @ k.mT).softmax(-1)
            maps.append(weights[:, :, 0, network.num_prefix_tokens :].unflatten(-1, tokens.shape[2:]))
        return maps
