"""The flow prior's features on disk (`cache.prior: disk`), filled as they are needed.

Because of the exact skip (`flow_prior.alignment.needed`) most samples never ask for features: a clip's are
computed when the first sample needs them, kept, and read from then on; or all of them beforehand by `build`
(`python -m medsora.training.fill_caches`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import torch
from accelerate import Accelerator
from torch import Tensor

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.runtime.digests import weights_digest
from medsora.runtime.progress_bar import progress_bar
from medsora.training.cache.fingerprint import clips_digest, flow_digest
from medsora.training.cache.store import TensorStore

if TYPE_CHECKING:
    from medsora.flow_prior import FlowPrior  # needs packages that counting memory does without

CODE_VERSION = 1  # raise when the way from a clip to its features changes


class PriorCache:
    """Features of a window's clip, by index and flip: one tensor (f, l, d) per distinct DINO layer, fp16."""

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
        if config.flow.estimator == "dis":
            depends_on["opencv"] = cv2.__version__  # whose flow it is
        if clips.spec.with_flow:
            depends_on["flow"] = flow_digest(clips)
        self.store = TensorStore(Path(config.cache.dir), "prior", depends_on)
        self.grid, self.width = grid, width
        self.flips = _flips(config)

    @torch.no_grad()
    def build(self, prior: FlowPrior, clips: ClipDataset, accelerator: Accelerator) -> None:
        """Compute what is not there yet; every process takes its share, all wait for the last."""
        entries = {_name(i, flip): (i, flip) for i in range(len(clips)) for flip in self.flips}
        names = list(entries)[accelerator.process_index :: accelerator.num_processes]
        missing = self.store.missing(names)
        show = bool(missing) and accelerator.is_local_main_process
        title = f"prior features of {len(entries)} clips"
        for name in progress_bar(title, missing, unit="clip", show=show):
            index, flip = entries[name]
            pixels = clips.fixed_clip(index, flip=flip, images=())
            self.put(
                index, flip, self.compute(prior, pixels["video"], pixels.get("flow"), accelerator.device)
            )
        accelerator.wait_for_everyone()

    def compute(
        self, prior: FlowPrior, video: Tensor, flow: Tensor | None, device: torch.device
    ) -> list[Tensor]:
        """Features (f, l, d) per distinct layer of a clip (F+1, 3, H, W) or of its flow (F, 2, H, W)."""
        layers = prior.distinct_targets(
            video[None].to(device),
            None if flow is None else flow[None].to(device),
            latent_frames=self.grid[0],
            grid=self.grid[1:],
            width=self.width,
        )
        return [layer[0] for layer in layers]

    def get(self, index: int, flipped: bool) -> list[Tensor] | None:
        """Return the layers' features of one clip, or None if they are still to be computed."""
        entry = self.store.get(_name(index, flipped))
        return None if entry is None else [entry[f"layer-{i}"] for i in range(len(entry))]

    def put(self, index: int, flipped: bool, layers: list[Tensor]) -> list[Tensor]:
        """Keep the layers' features (f, l, d) of one clip; return them rounded, as `get` will."""
        halves = [layer.half() for layer in layers]
        self.store.put(_name(index, flipped), {f"layer-{i}": half.cpu() for i, half in enumerate(halves)})
        return halves


def prior_cache_bytes(
    config: Config, clips: int, prior: FlowPrior, grid: tuple[int, int, int], width: int
) -> int:
    """How much the features of `clips` windows take at most, flipped ones included if clips are flipped."""
    per_layer = 2 * math.prod(prior.target_shape(grid, width))  # fp16
    return len(prior.distinct_layers) * per_layer * clips * len(_flips(config))


def _flips(config: Config) -> tuple[bool, ...]:
    return (False, True) if config.data.flip else (False,)


def _name(index: int, flipped: bool) -> str:
    return f"clip-{index:07d}-{'flipped' if flipped else 'plain'}"
