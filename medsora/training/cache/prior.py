"""The flow prior's features on disk (`cache.prior: disk`), filled as they are needed.

Because of the exact skip (`flow_prior.alignment.needed`) most samples never need features: a clip's are
computed when the first sample needs them, kept, and read from then on; or all of them beforehand by `build`
(`python -m medsora.training.fill_caches`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import torch
from accelerate import Accelerator
from torch import Tensor

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.runtime.digests import weights_digest
from medsora.training.cache.fingerprint import clips_digest, flow_digest
from medsora.training.cache.latents import JointImages, LatentCache, clip_entry, image_entry_latents
from medsora.training.cache.store import TensorStore
from medsora.vae import VideoVAE

if TYPE_CHECKING:
    from medsora.baselines.endora.image_prior import ImagePrior
    from medsora.flow_prior import FlowPrior  # needs packages that counting memory does without

CODE_VERSION = 1  # raise when the computation of features from a clip changes


class PriorCache:
    """Features of a window's clip, by index and flip: one tensor (f, l, d) per distinct DINO layer, fp16.

    With an image prior also those of joint images, by the name of their entry in the `LatentCache`.
    """

    def __init__(
        self, config: Config, clips: ClipDataset, prior: FlowPrior, grid: tuple[int, int, int], width: int
    ) -> None:
        """`grid` is a clip's tokens along frames, rows and columns, `width` d."""
        depends_on = {
            "code": CODE_VERSION,
            "clips": clips_digest(clips),
            "prior": weights_digest(prior),
            "estimator": config.flow.estimator,
            "dino": config.dino.model,
            "layers": prior.distinct_layers,
            "averaging": config.alignment.averaging,
            "grid": list(grid[1:]),
            "width": width,
        }
        if config.dino.model.endswith(".json"):
            depends_on["dino settings"] = prior.encoder.settings
        if config.alignment.kind == "image":
            depends_on |= {"kind": "image", "source": prior.source, "latent frames": grid[0]}
            if config.images.count and config.images.encoding == "packed":
                depends_on["image groups"] = [config.vae.kind, config.run.seed]
        if config.vae.kind == "per-frame":  # a causal VAE's follow from the frames
            depends_on["latent frames"] = grid[0]
        if config.flow.estimator == "dis":
            depends_on["opencv"] = cv2.__version__  # it computes this flow
        if clips.spec.with_flow:
            depends_on["flow"] = flow_digest(clips)
        self.store = TensorStore(Path(config.cache.dir), "prior", depends_on)
        self.config, self.grid, self.width = config, grid, width

    @torch.no_grad()
    def build(
        self, prior: FlowPrior, clips: ClipDataset, accelerator: Accelerator, latents: LatentCache
    ) -> None:
        """Compute the missing entries, as `TensorStore.fill` does."""
        device = accelerator.device
        entries: dict[str, Callable[[], list[Tensor]]] = {
            _name(i, flip): partial(self._clip_features, prior, clips, i, flip, device)
            for i in range(len(clips))
            for flip in self.config.data.flips
        }
        if has_image_targets(self.config):
            entries |= {
                _name(*images): partial(self._image_features, prior, latents, images, device)
                for images in latents.every_image()
            }

        def compute(name: str) -> dict[str, Tensor]:
            return _stored([layer.half() for layer in entries[name]()])

        self.store.fill(list(entries), "prior features", compute, accelerator)

    def _clip_features(
        self, prior: FlowPrior, clips: ClipDataset, index: int, flip: bool, device: torch.device
    ) -> list[Tensor]:
        pixels = clips.fixed_clip(index, flip=flip, images=(), kept=True)
        flow = pixels.get("flow")
        layers = prior.distinct_targets(
            pixels["video"][None].to(device),
            None if flow is None else flow[None].to(device),
            latent_frames=self.grid[0],
            grid=self.grid[1:],
            width=self.width,
        )
        return [layer[0] for layer in layers]

    def _image_features(
        self, prior: ImagePrior, latents: LatentCache, images: JointImages, device: torch.device
    ) -> list[Tensor]:
        pictures = latents.pictures(images).to(device)
        return prior.picture_targets(pictures, latents.entry_latents, self.grid[1:])

    def get(self, index: int | str, flipped: bool) -> list[Tensor] | None:
        """Return the layers' features of one clip, or None if they are still to be computed.

        Joint images have the name of their entry for `index`.
        """
        entry = self.store.get(_name(index, flipped))
        return None if entry is None else [entry[f"layer-{i}"] for i in range(len(entry))]

    def put(self, index: int | str, flipped: bool, layers: list[Tensor]) -> list[Tensor]:
        """Keep the layers' features (f, l, d) of one clip; return them rounded, as `get` will."""
        halves = [layer.half() for layer in layers]
        self.store.put(_name(index, flipped), _stored(halves))
        return halves


def _stored(halves: list[Tensor]) -> dict[str, Tensor]:
    return {f"layer-{i}": half.cpu() for i, half in enumerate(halves)}


def has_image_targets(config: Config) -> bool:
    """Whether joint images have targets: an image prior's, not the flow prior's."""
    return config.alignment.kind == "image" and config.images.count > 0


def prior_cache_bytes(
    config: Config, clips: int, prior: FlowPrior, grid: tuple[int, int, int], width: int, vae: VideoVAE
) -> int:
    """Maximum size of the features of `clips` windows in bytes, with flipped ones if clips are flipped."""
    per_latent = 2 * math.prod(prior.target_shape((1, *grid[1:]), width))  # fp16
    latents = grid[0] * clips * len(config.data.flips)
    if has_image_targets(config):
        latents += len(config.data.flips) * image_entry_latents(config, clips, vae)
    return len(prior.distinct_layers) * per_latent * latents


def _name(index: int | str, flipped: bool) -> str:
    item = clip_entry(index) if isinstance(index, int) else f"images-{index}"
    return f"{item}-{'flipped' if flipped else 'plain'}"
