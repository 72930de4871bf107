"""The tokenizer's codes of every enumerated window, on disk, plain and, where clips are flipped, mirrored.

A clip starts at its window's first frame, as with cached latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medsora.baselines.endogen.grid import frames_to_grid, grid_shape
from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.training.cache.fingerprint import clips_digest
from medsora.training.cache.latents import clip_entry
from medsora.training.cache.store import TensorStore

CODE_VERSION = 1  # raise when the computation of codes from a clip changes


class CodeCache:
    """Codes (N,) of windows' clips; `build` once, then read by the loader's workers."""

    def __init__(self, config: Config, clips: ClipDataset, tokenizer: Any) -> None:
        self.clips, self.flips = clips, config.data.flips
        depends_on = {
            "code": CODE_VERSION,
            "clips": clips_digest(clips),
            "frames": clips.spec.frames,
            "flips": len(self.flips),
            "tokenizer": tokenizer.digest,
        }
        self.store = TensorStore(Path(config.cache.dir), "codes", depends_on)

    def build(self, tokenizer: Any, accelerator: Accelerator) -> None:
        """Encode the missing entries, as `TensorStore.fill` does."""

        def encode(name: str) -> dict[str, Tensor]:
            index = int(name.split("-")[1])
            codes = [encode_clip(tokenizer, self.clips, index, flip=flip, kept=True) for flip in self.flips]
            return {"codes": torch.stack(codes)}

        self.store.fill([clip_entry(index) for index in range(len(self.clips))], "codes", encode, accelerator)

    def get(self, index: int, flipped: bool) -> Tensor:
        """Return the codes of a window's clip. Raises `BadInput` if they are gone."""
        return self.store.require(clip_entry(index))["codes"][int(flipped)]


@torch.no_grad()
def encode_clip(
    tokenizer: Any, clips: ClipDataset, index: int, *, flip: bool = False, kept: bool = False
) -> Tensor:
    """Return the codes (N,), on the CPU, of a window's clip, its frames laid out as a grid.

    `flip` and `kept`: see `ClipDataset.fixed_clip`.
    """
    video = clips.fixed_clip(index, flip=flip, images=(), kept=kept)["video"][: clips.spec.frames]
    picture = frames_to_grid(video, *grid_shape(len(video)))
    return tokenizer.encode(picture[None].to(tokenizer.device)).flatten().long().cpu()


def code_cache_bytes(config: Config, clips: int, codes: int) -> int:
    """Size of the codes of `clips` windows in bytes."""
    return 8 * codes * clips * len(config.data.flips)
