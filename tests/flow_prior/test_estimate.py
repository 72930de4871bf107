"""medsora.flow_prior.estimate, medsora.flow_prior.dis: estimators by name, OpenCV's DIS, and the shapes and
ranges that are refused.
"""

from __future__ import annotations

import pytest
import torch

from medsora.flow_prior import DisEstimator, build_estimator, estimate_flow
from tests.support.known_flow import shifting_video


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, -2), (-3, 1)])
def test_dis_finds_a_known_shift_in_every_pair(dx, dy):
    flow = estimate_flow(shifting_video(4, 64, 96, dx, dy), "dis")
    assert flow.shape == (1, 3, 2, 64, 96)
    assert flow.dtype == torch.float32
    mean = flow[..., 12:-12, 12:-12].mean(dim=(3, 4))[0]
    torch.testing.assert_close(mean, torch.tensor([[dx, dy]] * 3, dtype=torch.float32), atol=0.1, rtol=0)


def test_dis_treats_every_pair_alone():
    estimator = DisEstimator()
    video = torch.cat([shifting_video(3, 32, 32, 1, 1), shifting_video(3, 32, 32, -2, 0)])
    flow = estimator(video)
    assert torch.equal(flow[1, 1:], estimator(video[1:, 1:])[0])


def test_dis_finds_no_motion_in_a_still_picture():
    still = shifting_video(2, 32, 32, 1, 1)[:, :1].expand(1, 3, 3, 32, 32)
    assert estimate_flow(still, "dis").abs().max() < 1e-3


def test_dis_refuses_frames_that_opencv_cannot_search():
    with pytest.raises(ValueError, match="8x32 pixels are too small"):
        estimate_flow(torch.zeros(1, 2, 3, 8, 32), "dis")


@pytest.mark.parametrize(
    ("video", "sentence"),
    [
        (torch.zeros(1, 1, 3, 32, 32), "at least two frames"),
        (torch.zeros(1, 2, 32, 32, 3), r"expected \(B, F\+1, 3, H, W\)"),
        (torch.zeros(2, 3, 32, 32), r"expected \(B, F\+1, 3, H, W\)"),
        (torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), r"uint8\) leave \[-1, 1\]"),
        (torch.full((1, 2, 3, 32, 32), 255.0), r"leave \[-1, 1\]"),
    ],
)
def test_other_shapes_and_ranges_are_refused(video, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimate_flow(video, "dis")


def test_bad_names():
    with pytest.raises(ValueError, match="expected one of raft_large, raft_small, dis, exact"):
        build_estimator("farneback")
    with pytest.raises(ValueError, match="'dis' has no weights"):
        build_estimator("dis", "raft.pth")
    with pytest.raises(ValueError, match="needs the flow in the batch"):
        estimate_flow(torch.zeros(1, 2, 3, 32, 32), "exact")
