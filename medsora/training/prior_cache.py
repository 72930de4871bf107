"""The flow prior's features on disk (`cache.prior: disk`), filled as they are needed.

Because of the exact skip (`flow_prior.alignment.needed`) most samples never ask for features: a clip's are
computed when the first sample needs them, kept, and read from then on.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flow_prior import FlowPrior
from medsora.config import Config
from medsora.data.clips import ClipDataset
from medsora.training.fingerprint import clips_digest, weights_digest
from medsora.training.tensor_store import TensorStore

CODE_VERSION = 1  # raise when the way from a clip to its features changes


class PriorCache:
    """Features of a window's clip, by index and flip: one tensor (f, l, d) per distinct DINO layer, fp16."""

    def __init__(
        self, config: Config, clips: ClipDataset, prior: FlowPrior, grid: tuple[int, int], width: int
    ) -> None:
        depends_on = {
            "code": CODE_VERSION,
            "clips": clips_digest(clips),
            "prior": weights_digest(prior),
            "estimator": config.flow.estimator,
            "dino": config.dino.model,
            "layers": prior.distinct_layers,
            "averaging": config.alignment.averaging,
            "grid": list(grid),
            "width": width,
        }
        self.store = TensorStore(Path(config.cache.dir), "prior", depends_on)
        f = config.data.frames
        self.bytes_per_clip = 2 * len(prior.distinct_layers) * (f // 4 + f % 4) * grid[0] * grid[1] * width
        self.disk_bytes = self.bytes_per_clip * len(clips) * (2 if config.data.flip else 1)

    def get(self, index: int, flipped: bool) -> list[Tensor] | None:
        """Return the layers' features of one clip, or None if they are still to be computed."""
        entry = self.store.get(_name(index, flipped))
        return None if entry is None else [entry[f"layer-{i}"] for i in range(len(entry))]

    def put(self, index: int, flipped: bool, layers: list[Tensor]) -> list[Tensor]:
        """Keep the layers' features (f, l, d) of one clip; return them rounded, as `get` will."""
        halves = [layer.half() for layer in layers]
        self.store.put(_name(index, flipped), {f"layer-{i}": half.cpu() for i, half in enumerate(halves)})
        return halves


def _name(index: int, flipped: bool) -> str:
    return f"clip-{index:07d}-{'flipped' if flipped else 'plain'}"
