"""The metrics that `--metrics` may name, and what each is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medsora.errors import BadInput
from medsora.evaluation.measure import FrechetMeasure, Measure
from medsora.evaluation.motion import MotionExtractor, MotionMeasure
from medsora.evaluation.pixel import PixelMeasure
from medsora.evaluation.pyramid import PyramidExtractor

METRICS = ("motion", "pixel")
WEIGHT_FREE = ("motion", "pixel")


def parse_metrics(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the metrics of "fvd,fid" or a list of names, each once. Raises `BadInput` for an unknown one."""
    given = names.split(",") if isinstance(names, str) else names
    wanted = tuple(dict.fromkeys(name.strip().lower() for name in given if name.strip()))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        what = f"the metric '{unknown[0]}' is unknown" if unknown else "no metric is named"
        raise BadInput(f"{what}; choose from {', '.join(METRICS)}.")
    return wanted


def build_measures(
    names: Sequence[str], weights: Mapping[str, str | Path], device: torch.device
) -> dict[str, Measure]:
    """Return the measures of the metrics `names`, by the name under which reports list them."""
    measures: dict[str, Measure] = {}
    for name in names:
        if name == "motion":
            measures["motion"] = MotionMeasure(MotionExtractor())
        elif name == "pixel":
            measures["pixel"] = PixelMeasure()
            measures["untrained-pyramid"] = FrechetMeasure(
                "untrained_pyramid_distance",
                "untrained 3-D pyramid, Fréchet distance (not FVD)",
                PyramidExtractor(device),
            )
    return measures
