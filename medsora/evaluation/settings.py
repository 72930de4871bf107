"""What an evaluation is asked to do, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsora.config.crop import Crop, checked_crop
from medsora.data.reading.resize import height_width
from medsora.errors import BadInput
from medsora.evaluation.features.clip_set import DEFAULT_CROP, ClipSet, choose_clips
from medsora.evaluation.metrics.registry import parse_metrics
from medsora.evaluation.report.paper_tables import CORPORA

FEATURE_CACHE = Path("runs") / "cache" / "features"


@dataclass(kw_only=True)
class ClipSettings:
    """Which clips to measure, and where the results go.

    Attributes:
        clips: at most so many on each side.
        frames, size: of a clip; `size` is one number or (H, W).
        crop: "auto" cuts every video's own black borders off first, on both sides and of the training clips
            alike, as training does; "none" keeps whole frames; parts (top, bottom, left, right) are cut off
            every real and training frame, as with the same `data.crop`: generated ones never had them.
        interval: every so-manieth frame of the *real* videos, as in training; generated ones are read at 1.
        rate: frames per second of the real clips, taken by time, as in training with `data.rate`; instead of
            `interval`.
        seed: of the choice of clips and of re-sampling.
        weights: weight files by name, those of `medsora.evaluation.metrics.weight_files.PUBLISHED`.
        out: folder of the results.

    Raises `BadInput` for a value that is not possible.
    """

    clips: int = 2048
    frames: int = 16
    size: int | tuple[int, int] = 128
    crop: Crop = DEFAULT_CROP
    interval: int = 1
    rate: float | None = None
    seed: int = 0
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    out: str | Path = "results"

    def __post_init__(self) -> None:
        self.size, self.out = height_width(self.size), Path(self.out)
        if self.rate is not None and (self.interval != 1 or not 0 < self.rate <= 1000):
            raise BadInput(
                f"the rate is {self.rate} and the interval {self.interval}; give one of them, a rate "
                "above 0 and at most 1000 frames per second."
            )

    def choose(self, root: str | Path, **changed: Any) -> ClipSet:
        """Choose clips below `root` as the settings say, `changed` arguments of `choose_clips` apart."""
        asked = {name: getattr(self, name) for name in ("frames", "size", "interval", "rate", "seed", "crop")}
        return choose_clips(root, **{"count": self.clips, **asked, **changed})


@dataclass
class EvaluationSettings(ClipSettings):
    """Which clips to compare, and how.

    Attributes:
        real, fake: folders of videos or frame folders.
        metrics: names, as a list or joined by commas; see `medsora.evaluation.metrics.registry`.
        bootstrap: replicates for a 95 % interval of every figure; 0 gives none.
        corpus: whose columns of the paper's tables the figures belong to.
        memorised: folder of training clips: audit whether generated ones repeat them.
        cache: folder in which a real set's features are kept.
        batch_size: clips in one forward; memory and speed only.

    Raises `BadInput` for a value that is not possible.
    """

    real: str | Path
    fake: str | Path
    metrics: str | Sequence[str] = ("motion", "pixel")
    bootstrap: int = 0
    corpus: str | None = None
    memorised: str | Path | None = None
    cache: str | Path = FEATURE_CACHE
    batch_size: int = 4

    def __post_init__(self) -> None:
        self.metrics, self.cache = parse_metrics(self.metrics), Path(self.cache)
        super().__post_init__()
        for name, least in {"clips": 2, "frames": 1, "interval": 1, "batch_size": 1, "bootstrap": 0}.items():
            if getattr(self, name) < least:
                raise BadInput(f"{name} must be at least {least}, not {getattr(self, name)}.")
        self.crop = checked_crop(self.crop, "the crop")
        if min(self.size) < 16:
            raise BadInput(f"the size must be at least 16 pixels per side, not {self.size}.")
        if self.corpus is not None and self.corpus not in CORPORA:
            raise BadInput(f"the corpus '{self.corpus}' must be one of {', '.join(CORPORA)}.")
