"""Video to alignment targets: flow, flow pictures, DINO, and Sampling(·) to the denoiser's shape (§3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsora.flow_prior.choices import AVERAGINGS
from medsora.flow_prior.dino import DinoEncoder
from medsora.flow_prior.estimate import build_estimator, estimate_flow
from medsora.flow_prior.flow_image import flow_to_rgb


def selected_layers(depth: int, dino_depth: int = 12) -> list[int]:
    """Return the DINO layer that each of the denoiser's `depth` blocks is compared with, spread evenly.

    With DINO's 12 layers: S (6 blocks) 0, 2, .. 10; B (12) each once; L (24) each twice; XL (48) each four
    times; tiny (4) 0, 3, 6, 9.
    """
    return [block * dino_depth // depth for block in range(depth)]


class FlowPrior(nn.Module):
    """Target features of the denoiser from a video; frozen, no trainable weights.

    Args:
        estimator: video to flow, from `build_estimator`.
        encoder: flow pictures to tokens.
        layers: the encoder's layer for each block of the denoiser; each is computed once however often it
            is listed.
        averaging: how flow frames become latent frames, see `average_frames`.

    Raises:
        ValueError: the encoder has no such layer, or an unknown `averaging`.
    """

    def __init__(
        self, estimator: nn.Module, encoder: DinoEncoder, layers: Sequence[int], averaging: str = "aligned"
    ) -> None:
        super().__init__()
        beyond = [layer for layer in layers if not 0 <= layer < encoder.depth]
        if beyond:
            raise ValueError(f"the encoder has the layers 0 to {encoder.depth - 1}, and not {beyond[0]}.")
        if averaging not in AVERAGINGS:
            raise ValueError(f"averaging {averaging!r} is unknown: expected one of {', '.join(AVERAGINGS)}.")
        self.estimator, self.encoder = estimator, encoder
        self.layers = list(layers)
        self.distinct_layers = sorted(set(layers))
        self.averaging = averaging

    @classmethod
    def build(
        cls,
        estimator: str,
        dino: str,
        depth: int,
        *,
        flow_weights: str | None = None,
        dino_weights: str = "hub",
        averaging: str = "aligned",
    ) -> Self:
        """Build everything from names, for a denoiser of `depth` blocks.

        Args:
            estimator, flow_weights: see `build_estimator`.
            dino, dino_weights: see `DinoEncoder`.

        Raises:
            ValueError, OSError: as those two.
        """
        encoder = DinoEncoder(dino, dino_weights)
        layers = selected_layers(depth, encoder.depth)
        return cls(build_estimator(estimator, flow_weights), encoder, layers, averaging)

    @property
    def untrained(self) -> bool:
        """Whether the encoder has random weights, so that the alignment loss carries no signal."""
        return self.encoder.untrained

    def target_shape(self, grid: tuple[int, int, int], width: int) -> tuple[int, ...]:
        """The shape (f, l, d) of one layer's target of a clip; `grid` is (f, h̄, w̄)."""
        return grid[0], grid[1] * grid[2], width

    def forward(self, *clips: Tensor | None, **tokens: Any) -> list[Tensor]:
        """Return the targets (B, f, l, d) of every block; blocks that share a layer share the tensor.

        Arguments and errors are those of `distinct_targets`.
        """
        return self.pair_with_blocks(self.distinct_targets(*clips, **tokens))

    @torch.no_grad()
    def distinct_targets(
        self,
        video: Tensor | None,
        flow: Tensor | None = None,
        *,
        latent_frames: int,
        grid: tuple[int, int],
        width: int,
    ) -> list[Tensor]:
        """Return one target (B, f, l, d) for each of `distinct_layers`.

        Args:
            video: (B, F+1, 3, H, W) in [-1, 1]; may be None where `flow` is given.
            flow: (B, F, 2, H, W) in pixels if it is known, which spares its estimation.
            latent_frames: f.
            grid: (h̄, w̄), the denoiser's tokens per latent frame, l = h̄·w̄ row by row.
            width: d.

        Raises:
            ValueError: neither video nor flow, or shapes that cannot be averaged to f frames.
        """
        if flow is None:
            if video is None:
                raise ValueError("the flow prior got neither a video nor its flow.")
            flow = estimate_flow(video, self.estimator)
        clips = []
        for pictures in flow_to_rgb(flow):  # one clip at a time: all layers of all frames are large
            maps = self.encoder(pictures, self.distinct_layers)
            averages = (average_frames(tokens, latent_frames, self.averaging) for tokens in maps)
            clips.append([sample(average, grid, width) for average in averages])
        return [torch.stack(of_layer) for of_layer in zip(*clips, strict=True)]

    def pair_with_blocks(self, of_layers: Sequence[Tensor]) -> list[Tensor]:
        """Give every block of the denoiser its layer's tensor, from one tensor for each distinct layer."""
        by_layer = dict(zip(self.distinct_layers, of_layers, strict=True))
        return [by_layer[layer] for layer in self.layers]


def average_frames(frames: Tensor, latent_frames: int, averaging: str = "aligned") -> Tensor:
    """Average F flow frames (F, ...) to f latent frames (f, ...).

    "aligned" averages the frames that a latent covers: equal groups, except that latent 0 of 8k+1 frames
    covers the first alone, as in the causal VAE. "uniform" gives every latent the mean of all.

    Raises:
        ValueError: the frames do not fall into such groups.
    """
    if averaging == "uniform":
        return frames.mean(dim=0, keepdim=True).expand(latent_frames, *frames.shape[1:])
    count = len(frames)
    alone = int(count % 8 == 1)
    groups, grouped = latent_frames - alone, count - alone
    if groups == grouped == 0:
        return frames
    if groups < 1 or grouped < 1 or grouped % groups:
        raise ValueError(f"{count} flow frames cannot be shared among {latent_frames} latent frames.")
    means = frames[alone:].unflatten(0, (groups, -1)).mean(dim=1)
    return torch.cat([frames[:alone], means])


def sample(maps: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Sampling(·) of Eq. 14, without weights: (f, D, h, w) token maps to (f, h̄·w̄, d).

    Space is resized as the grid that it is, bilinearly; the feature axis linearly.
    """
    resized = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    tokens = resized.flatten(2).transpose(1, 2)
    return F.interpolate(tokens, size=width, mode="linear", align_corners=False)
