"""What the denoiser's features should look like: optical flow, seen by DINO (§3.2). Start at `prior.py`."""

from flow_prior.alignment import AlignmentLoss, alignment_loss, needed
from flow_prior.dino import DinoEncoder
from flow_prior.dis import DisEstimator
from flow_prior.estimate import ESTIMATORS, build_estimator, estimate_flow
from flow_prior.flow_image import flow_to_rgb
from flow_prior.prior import FlowPrior, selected_layers
from flow_prior.raft import RaftEstimator

__all__ = [
    "ESTIMATORS",
    "AlignmentLoss",
    "DinoEncoder",
    "DisEstimator",
    "FlowPrior",
    "RaftEstimator",
    "alignment_loss",
    "build_estimator",
    "estimate_flow",
    "flow_to_rgb",
    "needed",
    "selected_layers",
]
