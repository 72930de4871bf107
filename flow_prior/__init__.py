"""Target features of the denoiser: DINO features of the optical flow (§3.2). Start at `prior.py`.

The names below load on first use, so that a command line that only needs `flow_prior.choices` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsora.flow_prior.choices import ESTIMATORS

if TYPE_CHECKING:
    from medsora.flow_prior.alignment import AlignmentLoss, alignment_loss, image_alignment_loss, needed
    from medsora.flow_prior.dino import DinoEncoder
    from medsora.flow_prior.dis import DisEstimator
    from medsora.flow_prior.estimate import build_estimator, estimate_flow
    from medsora.flow_prior.flow_image import flow_to_rgb
    from medsora.flow_prior.prior import FlowPrior, selected_layers
    from medsora.flow_prior.raft import RaftEstimator

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
    "image_alignment_loss",
    "needed",
    "selected_layers",
]

_HOMES = {
    "AlignmentLoss": "alignment",
    "DinoEncoder": "dino",
    "DisEstimator": "dis",
    "FlowPrior": "prior",
    "RaftEstimator": "raft",
    "alignment_loss": "alignment",
    "build_estimator": "estimate",
    "estimate_flow": "estimate",
    "flow_to_rgb": "flow_image",
    "image_alignment_loss": "alignment",
    "needed": "alignment",
    "selected_layers": "prior",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


if __name__ == "flow_prior":  # imported by the folder's name, before `medsora`
    from medsora.checkout import import_again

    import_again(__name__)
