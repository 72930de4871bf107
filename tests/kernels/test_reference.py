"""The recurrence against sums written out by hand: one token, no memory, and the order of the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.support.scan_inputs import random_inputs
from medsora.kernels.reference import scan

EPS = 1e-5


def run(inputs: dict, orders: torch.Tensor) -> torch.Tensor:
    return scan(**{**inputs, "orders": orders}, eps=EPS)


def gated_norm(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    gated = y * F.silu(z)
    return gated / (gated.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def test_a_sequence_of_one_token_is_a_product() -> None:
    """h = Δ B x and y = C h + D x: without a step before it nothing decays."""
    inputs = random_inputs(1, batch=3, heads=2, headdim=4, d_state=5)
    z, xBC, dt = inputs["zxbcdt"][:, 0].split([8, 18, 2], dim=-1)
    xBC = F.silu(xBC * inputs["conv_weight"][:, -1] + inputs["conv_bias"])
    x, B, C = xBC.split([8, 5, 5], dim=-1)
    step = F.softplus(dt + inputs["dt_bias"])
    scale = step * (B * C).sum(-1, keepdim=True) + inputs["D"]
    y = (scale[..., None] * x.unflatten(-1, (2, 4))).flatten(1)
    found = run(inputs, torch.zeros(1, 1, 1, 1, dtype=torch.long))
    torch.testing.assert_close(found[0, :, 0], gated_norm(y, z, inputs["norm_weight"]), rtol=1e-10, atol=0)


def test_a_token_hears_those_before_it_only() -> None:
    inputs = random_inputs(6)
    order = torch.tensor([4, 0, 5, 2, 1, 3]).view(1, 1, 1, 6)
    before = run(inputs, order)
    changed = inputs["zxbcdt"].clone()
    changed[:, 5] += 1  # third in the order
    moved = (run({**inputs, "zxbcdt": changed}, order) - before).abs().amax((0, 1, 3)) > 0
    assert moved.tolist() == [False, True, True, True, False, True]


def test_sequences_of_an_order_are_apart_and_orders_of_an_axis_are_added() -> None:
    inputs = random_inputs(6)
    halves = torch.tensor([[[[0, 1, 2], [3, 4, 5]]]])
    apart = [
        run({**inputs, "zxbcdt": inputs["zxbcdt"][:, part]}, torch.arange(3).view(1, 1, 1, 3))
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(run(inputs, halves), torch.cat(apart, dim=2), rtol=1e-12, atol=0)
    backwards = halves.flip(-1)
    both = run(inputs, torch.cat([halves, backwards], dim=1))
    torch.testing.assert_close(both, run(inputs, halves) + run(inputs, backwards), rtol=1e-12, atol=1e-15)
    by_axis = run(inputs, torch.cat([halves, backwards], dim=0))
    assert by_axis.shape == (2, *both.shape[1:])
    torch.testing.assert_close(by_axis.sum(0, keepdim=True), both, rtol=1e-12, atol=1e-15)


def test_half_precision_is_summed_in_float32() -> None:
    inputs = random_inputs(5, dtype=torch.bfloat16)
    order = torch.arange(5).view(1, 1, 1, 5)
    exact = run({k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}, order)
    found = run(inputs, order)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
