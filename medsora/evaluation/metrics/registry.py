"""The metrics that `--metrics` may name, and what each is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medsora.config.choices import METRICS
from medsora.errors import BadInput
from medsora.evaluation.metrics.i3d import I3DExtractor
from medsora.evaluation.metrics.measure import FrechetMeasure, Measure
from medsora.evaluation.metrics.motion import MotionExtractor, MotionMeasure
from medsora.evaluation.metrics.pixel import PixelMeasure
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from medsora.evaluation.metrics.weight_files import at_hand, weight_file
from medsora.flow_prior import RaftEstimator
from medsora.flow_prior.choices import RAFT_VARIANTS
from medsora.runtime.digests import sha256

FLOW_ESTIMATORS = ("auto", *RAFT_VARIANTS, "dis")


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
    names: Sequence[str],
    weights: Mapping[str, str | Path],
    device: torch.device | str,
    flow: str = FLOW_ESTIMATORS[0],
) -> dict[str, Measure]:
    """Return the measures of the metrics `names`, by the name under which reports list them.

    `weights` are local files by the names of `weight_files.PUBLISHED`, `flow` is one of `FLOW_ESTIMATORS`.
    Networks' libraries load only when needed. Raises `ValueError` or `OSError`, in one sentence, for
    weights that do not fit or could not be loaded.
    """
    measures: dict[str, Measure] = {}
    if "fvd" in names:
        measures["fvd"] = FrechetMeasure("fvd", "FVD", I3DExtractor(weights, device))
    if "cd-fvd" in names:
        from medsora.evaluation.metrics.videomae import VideoMAEExtractor

        measures["cd-fvd"] = FrechetMeasure("cd_fvd", "CD-FVD", VideoMAEExtractor(weights, device))
    if "fid" in names or "is" in names:
        from medsora.evaluation.metrics import inception

        extractor = inception.InceptionExtractor(weights, device)
        if "fid" in names:
            measures["fid"] = FrechetMeasure("fid", "FID", extractor, inception.FID_COLUMNS)
        if "is" in names:
            measures["is"] = inception.InceptionScoreMeasure(extractor)
    if "fc" in names:
        from medsora.evaluation.metrics.frame_consistency import ClipExtractor, FrameConsistencyMeasure

        measures["fc"] = FrameConsistencyMeasure(ClipExtractor(weights, device))
    if "motion" in names:
        measures["motion"] = MotionMeasure(_motion_extractor(flow, weights, device))
    if "pixel" in names:
        measures["pixel"] = PixelMeasure()
        title = "untrained 3-D pyramid, Fréchet distance (not FVD)"
        pyramid = PyramidExtractor(device)
        measures["untrained-pyramid"] = FrechetMeasure("untrained_pyramid_distance", title, pyramid)
    if lacking := sorted(set(names) - set(measures)):
        raise ValueError(f"build_measures in {__name__} has no measure of the metric {lacking[0]!r}.")
    return measures


def _motion_extractor(
    flow: str, weights: Mapping[str, str | Path], device: torch.device | str
) -> MotionExtractor:
    """Take `flow`; "auto" is RAFT from weights that are given, RAFT from PyTorch's cache, else DIS."""
    if flow == "auto":
        given = [name for name in RAFT_VARIANTS if name in weights]
        cached = [name for name in RAFT_VARIANTS if at_hand(name, weights)]
        flow = [*given, *cached, "dis"][0]
    if flow == "dis":
        return MotionExtractor()
    path = weight_file(flow, weights)
    identity = {"flow": flow, "weights_sha256": sha256(path)}
    return MotionExtractor(RaftEstimator(flow, path).to(device), identity, device)
