"""Settings of an evaluation, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsora.config.choices import WEIGHT_FREE
from medsora.config.crop import Crop, checked_crop
from medsora.data.phantom.corpus import LABELS_NAME
from medsora.data.reading.resize import height_width
from medsora.errors import BadInput, bad_input_from_errors
from medsora.evaluation.features.clip_set import DEFAULT_CROP, ClipSet, choose_clips
from medsora.evaluation.metrics.registry import FLOW_ESTIMATORS, parse_metrics
from medsora.evaluation.metrics.weight_files import PUBLISHED
from medsora.evaluation.report.paper_tables import CORPORA

MEDSORA, STYLEGAN_V = PROTOCOLS = ("medsora", "stylegan-v")
METRICS_OF = {MEDSORA: WEIGHT_FREE, STYLEGAN_V: ("fvd", "fid", "is")}  # if none are named
FEATURE_CACHE = Path("runs") / "cache" / "features"


@dataclass(kw_only=True)
class ClipSettings:
    """The clips to measure, and the folder of the results.

    Attributes:
        clips: maximum number.
        frames, size: frames per clip, and their size; `size` is one number or (H, W).
        crop: "auto" cuts every video's own black borders off first, on both sides and of the training clips
            alike, as training does; "none" keeps whole frames; parts (top, bottom, left, right) are cut off
            every real and training frame, as with the same `data.crop`: generated ones never had them. None
            stands for what the generated clips name (`medsora.evaluation.training_clips`), else "auto".
        interval: every N-th frame of the *real* videos, as in training; generated ones are read at 1.
            None stands for what the generated clips name, else 1.
        rate: frames per second of the real clips, taken by time, as in training with `data.rate`; instead of
            `interval`. None stands for what the generated clips name where they name no interval.
        seed: seed of the choice of clips and of re-sampling.
        weights: weight files by name, those of `medsora.evaluation.metrics.weight_files.PUBLISHED`.
        out: folder of the results.

    Raises `BadInput` for a value that is not possible.
    """

    clips: int = 2048
    frames: int = 16
    size: int | tuple[int, int] = 128
    crop: Crop | None = None
    interval: int | None = None
    rate: float | None = None
    seed: int = 0
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    out: str | Path = "results"

    def __post_init__(self) -> None:
        with bad_input_from_errors():
            self.size, self.out = height_width(self.size), Path(self.out)
        self._require(frames=1, interval=1, seed=0)
        if unknown := [name for name in self.weights if name not in PUBLISHED]:
            raise BadInput(f"weights cannot name {unknown[0]!r}; there are {', '.join(PUBLISHED)}.")
        if self.rate is not None and (self.interval is not None or not 0 < self.rate <= 1000):
            raise BadInput(
                f"the rate is {self.rate} and the interval {self.interval}; give one of them, a rate "
                "above 0 and at most 1000 frames per second."
            )

    def _require(self, **least: int) -> None:
        """Raise `BadInput` for a setting below its least value; None is none."""
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise BadInput(f"{name} must be at least {value}, not {given}.")

    def choose(self, root: str | Path, count: int | None, **changed: Any) -> ClipSet:
        """Choose `count` clips below `root` by the settings, `changed` arguments of `choose_clips` apart.

        None takes all.
        """
        arguments = {name: getattr(self, name) for name in ("frames", "size", "rate", "seed")}
        arguments |= {"interval": self.interval or 1, "crop": self.crop or DEFAULT_CROP}
        return choose_clips(root, count=count, **arguments | changed)


@dataclass
class EvaluationSettings(ClipSettings):
    """The clips to compare, and the protocol.

    Attributes:
        real, fake: folders of videos or frame folders.
        label: only real clips of this label count; None takes all. `labels` is their source, as
            `data.labels` in a config: "folders" or a CSV's name.
        clips: at most so many on each side; (real, generated) limits them separately.
        protocol: "medsora", or "stylegan-v" for that of published papers, which fixes the number of clips,
            the interval and the crop (`medsora.evaluation.stylegan_v`).
        metrics: names, as a list or joined by commas; see `medsora.evaluation.metrics.registry`. None takes
            motion and pixel, or FVD, FID and IS with "stylegan-v", which has no others.
        flow: what estimates the optical flow of `motion`, one of `registry.FLOW_ESTIMATORS`.
        bootstrap: replicates for a 95 % interval of every metric; 0 gives none.
        corpus: the published set that the real clips are; the paper's values of it stand beside.
        memorised: folder of training clips: audit whether generated ones repeat them.
        cache: folder in which a real set's features are kept.
        batch_size: clips in one forward; memory and speed only.

    Raises `BadInput` for a value that is not possible.
    """

    real: str | Path
    fake: str | Path
    clips: int | tuple[int, int] = field(default=2048, kw_only=True)
    metrics: str | Sequence[str] | None = None
    bootstrap: int = 0
    corpus: str | None = None
    memorised: str | Path | None = None
    cache: str | Path = FEATURE_CACHE
    batch_size: int = 4
    protocol: str = MEDSORA
    flow: str = "auto"
    label: str | None = None
    labels: str = LABELS_NAME

    @property
    def of_real(self) -> dict[str, Any]:
        """Arguments of `choose_clips` that count for real clips alone."""
        return {} if self.label is None else {"label": (self.labels, self.label)}

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise BadInput(f"the protocol must be one of {', '.join(PROTOCOLS)}, not {self.protocol!r}.")
        self.metrics = METRICS_OF[self.protocol] if self.metrics is None else parse_metrics(self.metrics)
        self.cache = Path(self.cache)
        super().__post_init__()
        if self.label is None and self.labels != LABELS_NAME:
            raise BadInput(
                f"labels is {self.labels}, but there is no label: give one (--label), or leave it out."
            )
        self.clips = (self.clips,) * 2 if isinstance(self.clips, int) else tuple(self.clips)
        if len(self.clips) != 2:
            raise BadInput("clips must be one number, or one for the real and one for the generated side.")
        if min(self.clips) < 2:
            raise BadInput(f"clips must be at least 2, not {min(self.clips)}.")
        self._require(batch_size=1, bootstrap=0)
        self.crop = None if self.crop is None else checked_crop(self.crop, "the crop")
        if self.protocol == STYLEGAN_V:
            self._take_published_values()
        if min(self.size) < 16:
            raise BadInput(f"the size must be at least 16 pixels per side, not {self.size}.")
        if self.flow not in FLOW_ESTIMATORS:
            raise BadInput(f"flow must be one of {', '.join(FLOW_ESTIMATORS)}, not {self.flow!r}.")
        if self.corpus is not None and self.corpus not in CORPORA:
            raise BadInput(f"the corpus '{self.corpus}' must be one of {', '.join(CORPORA)}.")

    def _take_published_values(self) -> None:
        """Fill in what the protocol fixes. Raises `BadInput` for an option that contradicts it."""
        if others := [name for name in self.metrics if name not in METRICS_OF[STYLEGAN_V]]:
            raise BadInput(
                f"the protocol {STYLEGAN_V} has fvd, fid and is, not {others[0]}; leave that metric out."
            )
        fixed = {"clips": (2048, 2048), "interval": 1, "rate": None, "crop": "none", "memorised": None}
        for name, value in fixed.items():
            if getattr(self, name) not in (None, value):
                raise BadInput(f"the protocol {STYLEGAN_V} leaves no choice of {name}; leave --{name} out.")
            setattr(self, name, value)
