"""Self-attention in Mamba's places, compared with its definition, written out for one sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsora.denoiser.global_attention import SelfAttention, SpatialAttention, TemporalAttention
from medsora.denoiser.mamba import frame_scans
from medsora.denoiser.plain import rotate

WIDTH = 32
MAMBA = {"d_state": 8, "headdim": 8, "expand": 2, "d_conv": 4, "backend": "reference"}


def by_definition(attention: SelfAttention, sequence: Tensor) -> Tensor:
    """softmax(q·k / √p)·v of every head for one sequence (L, d), q and k rotated by their places."""
    length, place, heads = len(sequence), torch.arange(len(sequence)), []
    q, k, v = (
        (sequence @ weight.T).view(length, attention.heads, -1) for weight in attention.qkv.weight.chunk(3)
    )
    for head in range(attention.heads):
        pair = torch.stack((q[:, head], k[:, head]))[:, None]
        q_h, k_h = rotate(pair, torch.stack((place, place)))[:, 0]
        scores = q_h @ k_h.T / q_h.shape[-1] ** 0.5
        heads.append(scores.softmax(-1) @ v[:, head])
    return torch.cat(heads, dim=-1) @ attention.out_proj.weight.T


@torch.no_grad()
def test_spatial_attention_takes_in_one_frame_at_a_time() -> None:
    attention, x = SpatialAttention(WIDTH, **MAMBA).double(), torch.randn(2, 3, 6, WIDTH).double()
    y = attention(x, frame_scans(3, 2, (2, 3), 0, x.device))
    for sample, result in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        torch.testing.assert_close(result, by_definition(attention, sample), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("joint", [4, 3, 1])
@torch.no_grad()
def test_temporal_attention_takes_in_the_frames_of_one_position(joint: int) -> None:
    attention, x = TemporalAttention(WIDTH, **MAMBA).double(), torch.randn(2, 4, 6, WIDTH).double()
    y = attention(x, frame_scans(4, joint, (2, 3), 0, x.device))
    for sample, result in zip(x, y, strict=True):
        for position in range(6):
            track = sample[:, position]
            alone = [by_definition(attention, track[frame : frame + 1]) for frame in range(joint, 4)]
            expected = torch.cat([by_definition(attention, track[:joint]), *alone])
            torch.testing.assert_close(result[:, position], expected, atol=1e-10, rtol=1e-10)
    if joint == 4:
        assert torch.equal(y, attention(x))


def test_computes_in_the_precision_of_autocast() -> None:
    attention, x = SpatialAttention(WIDTH, **MAMBA), torch.randn(1, 2, 6, WIDTH)
    expected = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() < 0.02 * expected.norm()
