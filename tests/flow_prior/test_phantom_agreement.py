"""medsora.flow_prior.estimate: estimated flow against the phantom's exact flow, on the pixels that both
frames show.
"""

from __future__ import annotations

import pytest
import torch

from medsora.data.phantom import render_clip
from medsora.flow_prior import RaftEstimator, build_estimator, estimate_flow


@pytest.fixture(scope="module")
def clips():
    return [render_clip(seed, frames=3, size=64, polyp=False, instrument=False) for seed in (3, 4, 5)]


def end_point_errors(clips, estimator):
    """Mean error in px of the estimated flow and of no flow at all, over the valid pixels."""
    video = torch.stack([torch.from_numpy(clip.video) for clip in clips]).permute(0, 1, 4, 2, 3) / 127.5 - 1
    exact = torch.stack([torch.from_numpy(clip.flow) for clip in clips])
    valid = torch.stack([torch.from_numpy(clip.valid) for clip in clips])
    error = (estimate_flow(video, estimator) - exact).norm(dim=2)[valid].mean()
    return float(error), float(exact.norm(dim=2)[valid].mean())


def test_dis_agrees_with_the_exact_flow(clips):
    error, motion = end_point_errors(clips, build_estimator("dis"))
    print(f"DIS: end-point error {error:.2f} px at a mean motion of {motion:.2f} px")
    assert motion > 0.5
    assert error < 0.35 * motion


def test_raft_small_agrees_with_the_exact_flow(clips, raft_small_weights):
    error, motion = end_point_errors(clips, RaftEstimator("raft_small", raft_small_weights))
    print(f"RAFT-small: end-point error {error:.2f} px at a mean motion of {motion:.2f} px")
    assert error < 0.35 * motion
