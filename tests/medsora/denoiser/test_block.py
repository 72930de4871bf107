"""One block: silent at first, differentiable to the last digit, modulated per frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsora.config.switches import PAPER
from medsora.denoiser.block import Block
from medsora.denoiser.mamba import frame_scans
from medsora.kernels.block_steps import Residual

MAMBA = {"d_state": 4, "headdim": 8, "expand": 2, "d_conv": 4, "backend": "torch"}


def block(width: int = 16, **overrides: object) -> Block:
    settings = {"heads": 2, "window": 8, "dropout": 0.0, "variant": 3, "mamba": MAMBA}
    return Block(width, **settings | overrides).eval()


def run(block: Block, x: Tensor, time: Tensor, joint: int) -> tuple[Tensor, Tensor]:
    """The block on frames of 2 x 2 tokens."""
    scans = frame_scans(x.shape[1], joint, (2, 2), block.spatial.variant, x.device)
    return block(x, block.modulation(time), scans)


def test_modulation_at_zero_leaves_the_tokens_as_they_are() -> None:
    silent = block()
    torch.nn.init.zeros_(silent.modulation.weight)
    torch.nn.init.zeros_(silent.modulation.bias)
    x = torch.randn(2, 3, 4, 16)
    y, spatial = run(silent, x, torch.randn(2, 1, 16), 2)
    assert torch.equal(y, x)
    assert torch.equal(spatial, x)


@pytest.mark.parametrize("local_attention", [True, False])
def test_a_block_takes_the_sum_that_another_left(local_attention: bool) -> None:
    switches = PAPER | {"local_attention": local_attention}
    following = block(switches=switches)
    terms = Residual(*torch.randn(3, 2, 3, 4, 16))
    scans = frame_scans(3, 2, (2, 2), following.spatial.variant, torch.device("cpu"))
    modulation = following.modulation(torch.randn(2, 1, 16))
    for left, added in zip(
        following(terms, modulation, scans), following(terms.sum(), modulation, scans), strict=True
    ):
        assert torch.equal(left, added)


def test_spatial_tokens_are_taken_before_the_temporal_part() -> None:
    both = block()
    x, time = torch.randn(1, 3, 4, 16), torch.randn(1, 1, 16)
    y, spatial = run(both, x, time, 3)
    torch.nn.init.zeros_(both.temporal.mamba.out_proj.weight)
    without_time, _ = run(both, x, time, 3)
    assert torch.equal(spatial, without_time)
    assert not torch.equal(spatial, y)


def test_gradients_agree_with_finite_differences() -> None:
    double = block(width=8).double()
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    time = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, time: run(double, x, time, 2), (x, time), fast_mode=True)


def test_each_frame_is_modulated_by_its_own_time() -> None:
    framewise = block()
    x, time = torch.randn(1, 3, 4, 16), torch.randn(1, 3, 16)
    changed = time.clone()
    changed[:, 2] += 1
    y, changed_y = (run(framewise, x, value, 2)[0] for value in (time, changed))
    assert torch.equal(y[:, :2], changed_y[:, :2]), "frame 2 is scanned alone and alone had another time"
    assert not torch.equal(y[:, 2], changed_y[:, 2])
